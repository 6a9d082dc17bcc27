"""The command line: ``gmmcnn task=VERB key=value ...``, one Hydra application.

Overrides are checked before Hydra makes a folder: a misspelt key or an impossible value ends with 2 and the nearest
valid name, whichever job of a sweep it belongs to. A failed job ends with 1 after one line, or with 2 where only the
data or the network show that its configuration is wrong; the other jobs of a sweep still run.
"""

import os
import sys
import traceback
import uuid
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from gmmcnn.config import GROUPS, MOVED, Settings, setting_names
from gmmcnn.errors import ConfigurationError, GmmcnnError, one_line
from gmmcnn.names import did_you_mean

CONFIG_MODULE = "gmmcnn.conf"
_FREE_FORM = ("data.kwargs.", "model.kwargs.")
_exit_codes: list[int] = []
"""Of the jobs that failed."""

ConfigStore.instance().store(name="settings", node=Settings)
OmegaConf.register_new_resolver("unique", lambda: uuid.uuid4().hex[:6], use_cache=True)


def main() -> None:
    """Run the command line; the entry point of ``gmmcnn`` and ``python -m gmmcnn``."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors and leaves it to us to put them into one line
    try:
        arguments = _with_stored_overrides([_normalise(argument) for argument in sys.argv[1:]])
        check(arguments)
        sys.argv = [sys.argv[0], *arguments]
        _job()
    except ConfigurationError as error:
        _complain(one_line(error))
        sys.exit(2)
    except OSError as error:  # those of the work itself do not get here
        _complain(f"{error.filename}: {error.strerror}; expected a run folder that can be written: run=FOLDER")
        sys.exit(2)
    if _exit_codes:
        sys.exit(max(_exit_codes))


@hydra.main(version_base="1.3", config_path=f"pkg://{CONFIG_MODULE}", config_name="config")
def _job(composed: DictConfig) -> None:
    """Run one job: the whole of a single run, or one cell of a sweep."""
    from gmmcnn import tasks  # torch and numba load only when there is work to do

    settings = settings_of(composed)
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        tasks.execute(settings, folder)
    except KeyboardInterrupt:
        _complain(f"interrupted; goes on where it stopped with: gmmcnn task={settings.task} run={folder}")
        sys.exit(130)
    except Exception as error:
        _exit_codes.append(2 if isinstance(error, ConfigurationError) else 1)
        unexpected = "" if isinstance(error, GmmcnnError) else f"unexpected {type(error).__name__}: "
        hint = f"; see the traceback with debug=true run={folder}" if unexpected and not settings.debug else ""
        _complain(f"{unexpected}{one_line(error)}{hint}")
        if settings.debug:
            traceback.print_exc()


def settings_of(composed: DictConfig) -> Settings:
    """Turn Hydra's composed configuration into typed settings.

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
        raise ConfigurationError(_one_line(error)) from None
    assert isinstance(settings, Settings)
    return settings


def check(arguments: Sequence[str]) -> None:
    """Compose every job that these arguments ask for.

    Parameters
    ----------
    arguments : sequence of str
        As on the command line, flags included.

    Raises
    ------
    ConfigurationError
        An override is misspelt, of the wrong type, or impossible.
    """
    flags = get_args_parser().parse_args(arguments)
    if flags.help or flags.hydra_help or flags.info or flags.shell_completion:
        return
    search = [f"hydra.searchpath=[file://{Path(flags.config_dir).resolve()}]"] if flags.config_dir else []
    with hydra.initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        known = _known_names()
        for override in flags.overrides:
            _check_name(override, known)
        for job in _jobs(flags.overrides, multirun=flags.multirun):
            try:
                settings_of(hydra.compose(flags.config_name or "config", overrides=[*job, *search]))
            except MissingConfigException as error:
                raise _no_such_option(error) from None
            except HydraException as error:
                raise ConfigurationError(_one_line(error)) from None


def _jobs(overrides: list[str], *, multirun: bool) -> Sequence[Sequence[str]]:
    if not multirun:
        return [overrides]
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    if any(override.startswith("run=") for override in overrides):
        raise ConfigurationError("run= in a sweep: its jobs would overwrite each other; leave it out")
    return BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(overrides), max_batch_size=None)[0]


def _known_names() -> set[str]:
    """All settings, and all groups: those of settings, and those that bundle settings of several groups."""
    bundles = {folder.name for folder in files(CONFIG_MODULE).iterdir() if folder.is_dir()}
    return {*setting_names(), *GROUPS, *bundles - {"__pycache__"}}


def _check_name(override: str, known: set[str]) -> None:
    try:
        key = OverridesParser.create().parse_override(override).key_or_group
    except HydraException:
        hint = "; a value that holds = or spaces needs quotes within: key='a=b'" if "=" in override else ""
        raise ConfigurationError(f"{override!r} is not key=value{hint}") from None
    if key in MOVED:
        raise ConfigurationError(f"{key}: is {MOVED[key]} now")
    if key not in known and not key.startswith(("hydra", *_FREE_FORM)):
        raise ConfigurationError(f"{key}: no such setting{did_you_mean(key, known)} (gmmcnn --cfg job shows all)")


def _no_such_option(error: MissingConfigException) -> ConfigurationError:
    if not error.options or "/" not in (error.missing_cfg_file or ""):
        return ConfigurationError(_one_line(error))
    group, option = str(error.missing_cfg_file).rsplit("/", 1)
    hint = did_you_mean(option, error.options)
    return ConfigurationError(f"{group}={option}: expected one of {', '.join(error.options)}{hint}")


def _normalise(argument: str) -> str:
    """Write an argument as Hydra wants it where people write it otherwise."""
    if argument.lower() in ("debug=true", "debug=false"):  # the names of options of a group, not truth values
        key, value = argument.lower().split("=")
        return f"{key}='{value}'"
    return f"++{argument}" if argument.startswith(_FREE_FORM) else argument  # any key may be added there


def _with_stored_overrides(arguments: list[str]) -> list[str]:
    """Put the overrides of an earlier run before those given now, where ``run=FOLDER`` names its folder.

    Raises
    ------
    ConfigurationError
        Their file is damaged.
    """
    folder = next((a.removeprefix("run=") for a in arguments if a.startswith("run=")), None)
    stored_in = Path(folder) / ".hydra" / "overrides.yaml" if folder else None
    if stored_in is None or not stored_in.exists():
        return arguments
    given = {argument.lstrip("+~").split("=")[0] for argument in arguments}
    try:
        stored = OmegaConf.to_object(OmegaConf.load(stored_in))
    except (YAMLError, UnicodeDecodeError, OSError, OmegaConfBaseException):
        stored = None
    if not isinstance(stored, list) or not all(isinstance(override, str) for override in stored):
        raise ConfigurationError(
            f"{stored_in}: damaged; expected the settings of that run, one a line as '- key=value'; "
            "write them again, or delete the file and give them with run="
        )
    kept = [_renamed(s) for s in stored if s.lstrip("+~").split("=")[0] not in given | {"task", "run"}]
    return [*kept, *arguments]


def _renamed(override: str) -> str:
    """An override of an earlier version as it is written now."""
    key, equals, value = override.partition("=")
    return MOVED.get(key, key) + equals + value


def _one_line(error: Exception) -> str:
    """Join the telling lines of an error of Hydra or OmegaConf, with the key in front."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    key = next((line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")), None)
    telling = [line for line in lines if not line.startswith(("full_key:", "object_type=", "reference_type="))]
    return (f"{key}: " if key else "") + " ".join(telling)


def _complain(message: str) -> None:
    sys.stderr.write(f"gmmcnn: {message}\n")
