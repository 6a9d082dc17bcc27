"""The one record of a run's settings: ``config.yaml`` in its folder, whole and typed.

It is what ``run=FOLDER`` goes on with. Every value stands in it, so that the defaults of a later version do not change
an earlier run. Run folders of earlier versions hold the overrides of their first command instead, in ``.hydra/``.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gmmcnn.config import GROUPS, MOVED, Settings, setting_names
from gmmcnn.errors import ConfigurationError
from gmmcnn.files import digest_arrays

NAME = "config.yaml"
EARLIER = Path(".hydra") / "overrides.yaml"
_LONGEST = 1 << 20
"""Characters of a record; those that are written have some thousands."""
_UNREADABLE = (
    yaml.YAMLError, UnicodeDecodeError, OSError, OmegaConfBaseException, ValueError, RecursionError, AssertionError,
)  # fmt: skip
"""What OmegaConf and the parser below it raise on a file that is no record."""
_TAP = "extract.tap=post_activation"  # the default of the versions that kept their overrides there
_DIGEST = "# sha256: "
OF_A_COMMAND = ("task", "run", "sweep", "estimate", "compile", "dry_run", "quiet", "trust")
"""Settings that say what one command does, and where: those of the next one are its own."""


def settings_of(composed: DictConfig) -> Settings:
    """Turn a configuration into typed settings.

    Raises
    ------
    ConfigurationError
        A value is of the wrong type or impossible.
    """
    try:
        settings = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        if isinstance(error.__cause__, ConfigurationError):
            raise error.__cause__ from None
        raise ConfigurationError(in_one_line(error)) from None
    assert isinstance(settings, Settings)
    return settings


def in_one_line(error: Exception) -> str:
    """Join the telling lines of an error of Hydra or OmegaConf, with the key in front."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    key = next((line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")), None)
    telling = [line for line in lines if not line.startswith(("full_key:", "object_type=", "reference_type="))]
    return (f"{key}: " if key else "") + " ".join(telling)


def as_text(settings: Settings) -> str:
    """Content of ``config.yaml``; its first line is a digest of the rest, and so survives where the end is lost."""
    text = OmegaConf.to_yaml(OmegaConf.structured(settings))
    return f"{_DIGEST}{digest_arrays(text.encode())}\n{text}"


def _require_as_written(path: Path) -> None:
    """Raise ConfigurationError if a record is another than its first line says.

    Earlier versions wrote that line at the end, or none; any other comment is what is left of such a line.
    """
    text = path.read_text(encoding="utf-8")
    before, found, after = text.partition(_DIGEST)
    digest, _, body = after.partition("\n")
    left = any(line.startswith("#") for line in text.splitlines()) if not found else False
    if left or (found and digest.strip() != digest_arrays((before or body).encode())):
        raise ConfigurationError(
            f"{path}: damaged, or changed by hand: it is not what was written; where every setting is as it should be, "
            f"delete the line {_DIGEST.strip()!r} …, else give the settings with run= after deleting the file"
        )


def read(folder: Path) -> Settings | None:
    """Settings of the run in a folder, with the task that wrote them; None where it holds no record of them.

    What a later version has added since stands at its default.

    Raises
    ------
    ConfigurationError
        The record is damaged, or of a version that knows other settings.
    """
    path = folder / NAME
    if not path.exists():
        return None
    remedy = "write it again, or delete it and give the settings with run="
    try:
        content = OmegaConf.to_container(_yaml(path))
    except (*_UNREADABLE, AttributeError):
        content = None
    if not isinstance(content, dict) or not {"seed", "data"} <= content.keys():
        raise ConfigurationError(f"{path}: damaged; expected the settings of that run; {remedy}")
    _require_as_written(path)
    named = dict(_flat(content))
    if unknown := [name for name in named if name not in setting_names()]:
        raise ConfigurationError(f"{path}: {unknown[0]} is no setting of this version; {remedy}")
    recorded = OmegaConf.structured(Settings)
    try:
        for name, value in named.items():
            if name not in OF_A_COMMAND or name == "task":
                OmegaConf.update(recorded, name, value, merge=False)
        return settings_of(recorded)
    except (OmegaConfBaseException, ConfigurationError) as error:
        raise ConfigurationError(f"{path}: {in_one_line(error)}; {remedy}") from None


def read_earlier(folder: Path) -> list[str] | None:
    """Overrides of the first command in the run folder of an earlier version; None where there are none.

    Raises
    ------
    ConfigurationError
        Their file is damaged.
    """
    path = folder / EARLIER
    if not path.exists():
        return None
    try:
        stored = OmegaConf.to_object(_yaml(path))
    except _UNREADABLE:
        stored = None
    if not isinstance(stored, list) or not all(isinstance(override, str) for override in stored):
        raise ConfigurationError(
            f"{path}: damaged; expected the settings of that run, one a line as '- key=value'; "
            "write them again, or delete the file and give them with run="
        )
    given = [_renamed(override) for override in stored]
    return given if any(override.startswith(("extract.tap", "extract=")) for override in given) else [*given, _TAP]


def _yaml(path: Path) -> DictConfig | ListConfig:
    """Content of a YAML file of no more than a record's size. Aliases are refused: ten lines of them make gigabytes."""
    with path.open(encoding="utf-8") as file:
        text = file.read(_LONGEST + 1)
    if len(text) > _LONGEST or any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, yaml.SafeLoader)):
        raise ValueError("no record")
    content = OmegaConf.create(text)
    if not isinstance(content, DictConfig | ListConfig):
        raise ValueError("neither settings nor a list")
    return content


def values_of(settings: Settings) -> dict[str, Any]:
    """Every setting by its dotted name."""
    return dict(_flat(OmegaConf.to_container(OmegaConf.structured(settings))))


def _flat(content: Any) -> Iterator[tuple[str, Any]]:
    """Settings by their dotted names of now; a group of earlier ones among them."""
    for group, inner in content.items():
        nested = isinstance(inner, Mapping) and (group in GROUPS or any(f"{group}.{key}" in MOVED for key in inner))
        for key, value in inner.items() if nested else [("", inner)]:
            name = f"{group}.{key}".removesuffix(".")
            yield MOVED.get(name, name), value


def _renamed(override: str) -> str:
    """An override of an earlier version as it is written now."""
    key, equals, value = override.partition("=")
    return MOVED.get(key, key) + equals + value
