"""Grids of settings: factors, each with its options, and the cells that every combination of them makes."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gmmcnn import config
from gmmcnn.errors import ConfigurationError


def grid(factors: dict[str, list[str]]) -> Iterator[str]:
    """Cells of a grid: one option of each factor, joined to ``"group.key=value group.key=value ..."``.

    Raises
    ------
    ConfigurationError
        There is no factor.
    """
    if not factors:
        raise ConfigurationError(
            "experiment.grid: is empty; expected factors with options, as {model: [model.name=lenet5]}"
        )
    yield from (" ".join(chosen) for chosen in product(*factors.values()))


def with_cell(settings: config.Settings, cell: str) -> config.Settings:
    """Settings with those of a cell in their place.

    Raises
    ------
    ConfigurationError
        A key of the cell names no setting, or a value is impossible.
    """
    for setting in cell.split():
        key = setting.partition("=")[0]
        group, _, name = key.partition(".")
        if (
            not hasattr(config.GROUPS.get(group), "__dataclass_fields__")
            or name not in config.GROUPS[group].__dataclass_fields__
        ):
            raise ConfigurationError(f"experiment.grid: {key}: no such setting; expected group.key=value")
        given = OmegaConf.from_dotlist([setting])[group]
        try:
            changed: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(getattr(settings, group)), given))
        except OmegaConfBaseException as error:
            raise ConfigurationError(f"experiment.grid: {setting}: {str(error).splitlines()[0]}") from None
        settings = replace(settings, **{group: changed})
    return settings
