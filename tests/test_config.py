"""Every YAML file composes, typed and within range; every impossible value is refused by name."""

from dataclasses import fields, is_dataclass
from importlib.resources import files
from pathlib import Path

import hydra
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from gmmcnn import cli, config
from gmmcnn.cli import CONFIG_MODULE
from gmmcnn.constants import MAX_STARTS, SMALL_SHARE, STRICT
from gmmcnn.errors import ConfigurationError
from gmmcnn.mixture.sweep import GaussianMixtureSweep
from gmmcnn.run.record import settings_of

CONF = Path(str(files(CONFIG_MODULE)))
OPTIONS = sorted(path.relative_to(CONF).with_suffix("") for path in CONF.glob("*/*.yaml"))


@pytest.fixture(autouse=True)
def _laid_over_nothing():
    cli._lay_over(config.Settings())  # a command of another test may have gone on with a run


def composed(*overrides: str) -> config.Settings:
    with hydra.initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        return settings_of(hydra.compose("config", overrides=list(overrides)))


def test_without_overrides_the_defaults_are_those_of_the_dataclasses():
    settings, expected = composed(), config.Settings()
    assert settings.run is not None
    settings.run = None
    assert settings == expected


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_every_option_composes(option):
    group, name = option.parts
    changed = composed(f"{group}='{name}'")
    own = OmegaConf.load(CONF / f"{option}.yaml")
    if group in config.GROUPS and "defaults" not in own:
        for key, value in own.items():
            if key in config.GROUPS:  # an option of the whole configuration
                for name, inner in value.items():
                    assert getattr(getattr(changed, str(key)), str(name)) == inner
            else:
                assert getattr(getattr(changed, group), str(key)) == value


def test_there_is_an_option_to_compose():
    assert len(OPTIONS) > 15


@given(n_samples=st.integers(3, 10**6), k_max=st.integers(2, 32), size_given=st.none() | st.integers(1, 50))
def test_lambda_is_the_one_given_or_keeps_the_ratio_informative(n_samples, k_max, size_given):
    size = config.Screen(small_cluster=size_given).small_cluster_for(n_samples, k_max)
    if size_given:
        assert size == size_given
    elif n_samples >= 4 * k_max:
        assert STRICT < size * k_max / n_samples <= SMALL_SHARE
    else:
        assert size == 1


def test_the_method_defaults_stand_as_published_or_as_documented():
    settings = config.Settings()
    assert (settings.probe.samples, settings.probe.batches, settings.pca.dims) == (200, 10, 2)
    assert (settings.gmm.k_min, settings.gmm.k_max, settings.gmm.tol, settings.gmm.max_iter) == (2, 10, 1e-3, 100)
    screen = settings.screen
    small_cluster = screen.small_cluster_for(settings.probe.samples, settings.gmm.k_max)
    assert (small_cluster, screen.min_small_clusters, screen.ch_ratio, screen.activation_ratio) == (
        5,
        1,
        0.8,
        0.5,
    )
    assert (screen.min_frequency, screen.scope, screen.average) == (0.5, "layer", "median")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task=trian", "task=trian: expected one of run, train"),
        ("seed=-1", r"seed=-1: expected a whole number from 0 to 2\^63 - 1"),
        (f"seed={2**63}", r"seed=9223372036854775808: expected a whole number from 0 to 2\^63 - 1"),
        ("data.label_noise=1.5", r"data\.label_noise=1\.5: expected a number in \[0, 1\]"),
        ("data.validation_share=1", r"data\.validation_share=1\.0: expected a number in \(0, 1\)"),
        ("data.train_samples=0", r"data\.train_samples=0"),
        ("train.epochs=0", r"train\.epochs=0"),
        ("train.optimizer=adamw", r"train\.optimizer=adamw: expected one of adam, sgd"),
        ("train.checkpoint_epochs=[3,31]", r"train\.checkpoint_epochs=31: expected epochs from 1 to train\.epochs=30"),
        ("train.momentum=1", r"train\.momentum"),
        ("probe.samples=2", r"probe\.samples=2"),
        ("probe.batches=0", r"probe\.batches=0: expected a whole number >= 1, or all"),
        ("probe.batches=some", r"probe\.batches=some: expected a whole number >= 1, or all"),
        ("data.plant_foreign=-1", r"data\.plant_foreign=-1: expected >= 0"),
        ("extract.tap=after", r"extract\.tap=after: expected one of auto, post_activation, branch, pre_activation"),
        ("extract.dtype=bfloat16", r"extract\.dtype"),
        ("extract.keep_maps=first", r"extract\.keep_maps"),
        ("pca.dims=9", r"pca\.dims=9: expected a whole number from 1 to 8"),
        ("gmm.k_min=1", r"gmm\.k_min=1"),
        ("gmm.k_max=33", r"gmm\.k_max=33: expected a whole number from gmm\.k_min=2 to 32"),
        ("gmm.reg_covar=2", r"gmm\.reg_covar=2\.0: expected a number from 0 to 1"),
        ("gmm.n_init=67108864", r"gmm\.n_init=67108864: expected a whole number from 1 to 67108863"),
        (f"gmm.max_iter={2**31}", r"gmm\.max_iter=2147483648: expected a whole number from 1 to 2\^31 - 1"),
        (f"gmm.random_state={2**63}", r"gmm\.random_state"),
        ("engine.threads=65537", r"engine\.threads=65537: expected a whole number from 1 to 65536"),
        ("extract.autocast=float64", r"extract\.autocast=float64: expected one of bfloat16, float16"),
        ("engine.cuml=always", r"engine\.cuml=always: expected one of never, auto"),
        ("device=gpu", r"device=gpu: expected auto, cpu, cuda, or one of several as cuda:1"),
        ("device=cuda:", r"device=cuda:: expected auto"),
        ("gmm.tol=-1", r"gmm\.tol"),
        ("screen.min_frequency=0", r"screen\.min_frequency=0\.0"),
        ("screen.scope=model", r"screen\.scope=model: expected one of layer, network"),
        ("prune.controls=-1", r"prune\.controls"),
        ("engine.threads=0", r"engine\.threads=0"),
        ("engine.gpus=0", r"engine\.gpus=0: expected a whole number from 1 to 64"),
        ("probe.plant=-4", r"probe\.plant"),
        ("probe.plant_strength=0", r"probe\.plant_strength"),
    ],
)
def test_an_impossible_value_is_refused_by_name(override, message):
    with pytest.raises(ConfigurationError, match=message):
        composed(override)


def test_a_sweep_and_a_generator_take_the_largest_values():
    gmm = config.Gmm(k_max=32, n_init=MAX_STARTS - 1, max_iter=2**31 - 1, reg_covar=1, random_state=config.MAX_SEED)
    seed = config.Settings(seed=config.MAX_SEED).seed
    GaussianMixtureSweep(**gmm.of_a_sweep | {"random_state": seed + gmm.random_state}, threads=2**16)._settings()
    torch.Generator().manual_seed(seed)


def test_kept_epochs_are_about_ten_with_the_first_and_the_last():
    assert config.Train(epochs=30).kept_epochs == [1, 4, 7, 11, 14, 17, 20, 24, 27, 30]
    assert config.Train(epochs=3).kept_epochs == [1, 2, 3]
    assert config.Train(epochs=1).kept_epochs == [1]
    assert config.Train(epochs=9, checkpoint_epochs=[9, 2, 2]).kept_epochs == [2, 9]


def test_every_setting_has_a_type_hydra_can_check():
    for group in fields(config.Settings):
        kind = config.GROUPS.get(group.name)
        assert kind is None or is_dataclass(kind)
    OmegaConf.structured(config.Settings)


# ------------------------------------------------------------------------------------------------- what depends on what


def test_every_setting_is_declared_once_to_decide_something_or_nothing():
    declared = {name for names in config.DECIDED_BY.values() for name in names}
    assert declared == set(config.setting_names())
    for product, names in config.DECIDED_BY.items():
        assert len(set(names)) == len(names), product
    decisive = {name for product, names in config.DECIDED_BY.items() for name in names if product != "nothing"}
    assert not decisive & set(config.DECIDED_BY["nothing"])
    assert set(config.MADE_FROM) | {"nothing"} == set(config.DECIDED_BY)


def test_what_is_made_from_a_product_depends_on_all_that_the_product_does():
    settings = config.Settings()
    for product, source in config.MADE_FROM.items():
        names = config.behind(settings, product)
        assert set(config.deciding(settings, product)) <= set(names)
        assert source is None or set(config.behind(settings, source)) <= set(names)
    assert "screen.ch_ratio" not in config.behind(settings, "fits")
    assert "prune.controls" not in config.behind(settings, "cell")


@pytest.mark.parametrize(
    "override",
    [
        "debug='true'",
        "run=elsewhere",
        "engine=reference",
        "engine.threads=3",
        "engine.gpus=2",
        "device=cuda:1",
        "task=fit",
        "extract.forward_samples=7",
    ],
)
@pytest.mark.parametrize("product", list(config.MADE_FROM))
def test_how_and_where_a_product_is_made_does_not_rename_it(product, override):
    assert config.behind(composed(override), product) == config.behind(composed(), product)


@pytest.mark.parametrize(
    ("override", "product"),
    [
        ("seed=1", "weights"), ("data.label_noise=0.1", "weights"), ("train.epochs=3", "weights"),
        ("probe.plant=1", "maps"), ("extract.tap=branch", "maps"), ("gmm.k_max=4", "fits"), ("pca.dims=3", "fits"),
        ("engine.cuml=auto", "fits"), ("extract.autocast=bfloat16", "maps"),
        ("screen.ch_ratio=2", "screening"), ("prune.controls=1", "masking"), ("experiment.seeds=4", "cell"),
    ],
)  # fmt: skip
def test_what_decides_a_product_renames_it(product, override):
    assert config.behind(composed(override), product) != config.behind(composed(), product)


def test_epochs_are_compared_by_what_they_stand_for():
    spelled_out = config.Settings(train=config.Train(epochs=3, checkpoint_epochs=[3, 2, 1]))
    left_open = config.Settings(train=config.Train(epochs=3))
    assert config.behind(spelled_out, "weights") == config.behind(left_open, "weights")


@pytest.mark.parametrize(
    ("batches", "available", "divided"),
    [
        (10, 1438, (7, 200)),
        (3, 1438, (3, 200)),
        (10, 199, (0, 200)),
        ("all", 2000, (10, 200)),
        ("all", 1438, (7, 205)),  # 3 left out; 38 with 200
        ("all", 199, (1, 199)),
        ("all", 170, (0, 200)),
    ],
)
def test_batches_that_so_many_samples_suffice_for(batches, available, divided):
    assert config.Probe(samples=200, batches=batches).divide(available) == divided
