"""What --help says of every setting."""

import pytest

from gmmcnn import config
from gmmcnn.run.explained import meaning, settings_text


@pytest.mark.parametrize("name", config.setting_names())
def test_every_setting_is_explained(name):
    assert len(meaning(name)) > 5
    assert "`" not in meaning(name)


def test_the_text_shows_defaults_as_the_command_line_takes_them():
    text = settings_text()
    for line in ("probe.samples=200", "data.label_noise=0.0", "gmm.n_init=1", "dry_run=false", "data.root=null"):
        assert f"    {line}\n" in text
    assert max(map(len, text.splitlines())) <= 110
    assert "None" not in text


def test_settings_stand_under_the_meaning_of_their_group():
    text = settings_text()
    assert (
        text.index("  probe: The training samples") < text.index("    probe.samples=") < text.index("  extract: Which")
    )
