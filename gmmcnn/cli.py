"""The command line: ``gmmcnn task=VERB key=value ...``, one Hydra application.

Overrides are checked before Hydra makes a folder: a misspelt key or an impossible value ends with 2 and the nearest
valid name, whichever job of a sweep it belongs to. A failed job ends with 1 after one line, or with 2 where only the
data or the network show that its configuration is wrong; the other jobs of a sweep still run.
"""

import os
import sys
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gmmcnn.config import GROUPS, LAUNCHERS, MOVED, TASKS, LocalLauncher, Settings, SlurmLauncher, setting_names
from gmmcnn.errors import ConfigurationError, GmmcnnError, one_line
from gmmcnn.files import read_json
from gmmcnn.hardware.workers import Workers
from gmmcnn.names import command, did_you_mean, for_a_shell, quoted, runs_foreign_code
from gmmcnn.progress import hush, take_any_output, warn_in_one_line
from gmmcnn.run import lock, record, signals
from gmmcnn.run.explained import settings_text

CONFIG_MODULE = "gmmcnn.conf"
A_FOLDER = "expected a run folder that can be written: run=FOLDER"
STARTING = ("run", "train", "extract", "experiment")
"""Tasks that a run can start with."""
FROM_THE_FOLDER_ALONE = ("screen", "samples", "report", "verify")
"""Tasks that look up neither the network nor the data set that a run folder names, so whoever wrote it runs nothing."""
SIDE_BY_SIDE = ("screen", "fit")
"""Tasks that one run can do by several settings, ``-m run=FOLDER``: what they write lies side by side."""
RESULT = "run.json"
"""What a refused command leaves in a folder that it found empty."""

_NO_START = ("task", "run", "estimate", "compile", "dry_run", "quiet", "trust", "debug")
_OF_A_SWEEP = ("sweep", "quiet")
"""What is said to the launcher: its jobs are told apart by everything else."""
_FREE_FORM = ("data.kwargs.", "model.kwargs.", "cluster.options.")
_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
_exit_codes: list[int] = []
"""Of the jobs that failed."""

ConfigStore.instance().store(name="settings", node=Settings())
for _name, _kind in LAUNCHERS.items():
    ConfigStore.instance().store(group="hydra/launcher", name=f"{_name}_settings", node=_kind())
OmegaConf.register_new_resolver("unique", lambda: uuid.uuid4().hex[:6], use_cache=True)
OmegaConf.register_new_resolver("explained", settings_text)


def main() -> None:
    """Run the command line; the entry point of ``gmmcnn`` and ``python -m gmmcnn``."""
    take_any_output()
    warn_in_one_line()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors and leaves it to us to put them into one line
    try:
        arguments = _going_on([_normalise(argument) for argument in _spelt_out(sys.argv[1:])])
        check(arguments)
        given = _given(arguments)
        if _asked(given, "quiet"):
            hush()
        if _asked(given, "dry_run"):
            arguments = _beside(arguments, "hydra.run.dir=.")  # no folder is made for a run that does not take place
        exit_code = _sweep(arguments)
        if exit_code is None:
            sys.argv = [sys.argv[0], *arguments]
            _job()
            exit_code = max(_exit_codes, default=0)
    except KeyboardInterrupt:  # before there was any work
        _complain("interrupted before it began")
        sys.exit(signals.EXIT_CODES[KeyboardInterrupt])
    except ConfigurationError as error:
        _complain(one_line(error))
        sys.exit(2)
    except OSError as error:  # those of the work itself do not get here
        _complain(f"{error.filename}: {error.strerror}; {A_FOLDER}")
        sys.exit(2)
    if exit_code:
        sys.exit(exit_code)


def _sweep(arguments: Sequence[str]) -> int | None:
    """Run or aggregate a sweep, and return an exit code; None where the arguments are of one run.

    Hydra's own launchers, and those of other packages, do without a record: they are left to Hydra.
    """
    flags = get_args_parser().parse_args(arguments)
    if flags.help or flags.hydra_help or flags.info or flags.cfg or flags.shell_completion:
        return None
    given = _given(arguments)
    folder = str(given["sweep"].value()) if "sweep" in given else None
    if not flags.multirun:
        return _aggregate(given, folder)
    if _asked(given, "dry_run"):
        raise ConfigurationError("dry_run=true: shows what one run would do; leave out -m, and give one value each")
    if "run" in given:
        return _side_by_side(flags.overrides, given)
    own = [override for override in flags.overrides if _key(override).startswith("hydra")]
    launcher = _launcher(own)
    if launcher is None:
        return None
    from gmmcnn.multirun import launch

    of_jobs = [override for override in flags.overrides if override not in own and _key(override) not in _OF_A_SWEEP]
    asked = _jobs(of_jobs, multirun=True) if of_jobs else []
    sweep = launch.opened(folder, asked)
    try:
        with signals.heeded():
            return launch.launch(sweep, launcher, do_job)
    except tuple(signals.EXIT_CODES) as end:
        _complain(f"interrupted; goes on where it stopped with: {launch.again(sweep)}")
        return signals.EXIT_CODES[type(end)]


def _require_side_by_side(given: Mapping[str, Override]) -> None:
    """Raise ConfigurationError unless a sweep within one run is of tasks whose results lie side by side."""
    task = str(given["task"].value()) if "task" in given else Settings.task
    if task not in SIDE_BY_SIDE:
        raise ConfigurationError(
            f"run= in a sweep: its jobs would overwrite each other; leave it out, or give task="
            f"{' or task='.join(SIDE_BY_SIDE)}, whose results lie side by side"
        )


def _side_by_side(overrides: list[str], given: Mapping[str, Override]) -> int:
    """Do a task in one run folder by several settings, and return an exit code."""
    from gmmcnn.run import screenings

    folder = _folder(given["run"])
    recorded = record.read(folder)
    if recorded is None:
        raise ConfigurationError(f"{folder / record.NAME}: missing; written by: {command('screen', folder)}")
    # In an order of their own, so that the same settings have the same folder however they are given.
    varied = sorted(set(map(_key, overrides)) - set(record.OF_A_COMMAND), key=lambda key: key.rpartition(".")[::-1])
    screenings.require_settings_that_decide(varied)
    asked = {}
    with hydra.initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        for job in _jobs(overrides, multirun=True):
            values = dict(override.partition("=")[::2] for override in job)
            name = screenings.name_by({key: values[key] for key in varied})
            asked[name] = _composed(tuple(job), "config")
    own = replace(recorded, task=str(given["task"].value()))
    again = " ".join(["gmmcnn", "-m", *map(for_a_shell, overrides)])

    def work() -> None:
        from gmmcnn import tasks

        tasks.execute_beside(own, folder, varied, asked)

    return _carried_out(work, again, debug=next(iter(asked.values())).debug)


def _aggregate(given: Mapping[str, Override], folder: str | None) -> int | None:
    """Aggregate a sweep where that is the task."""
    if "task" not in given or given["task"].value() != "aggregate":
        if folder is not None:
            raise ConfigurationError(f"sweep={folder}: expected gmmcnn -m sweep=FOLDER, or task=aggregate with it")
        return None
    if folder is None:
        raise ConfigurationError("task=aggregate: of which sweep? expected sweep=FOLDER")
    from gmmcnn.multirun import launch

    launch.told(launch.opened(folder, []))
    return 0


def _launcher(overrides: list[str]) -> LocalLauncher | SlurmLauncher | None:
    """Settings of the launcher that is chosen; None for Hydra's own and those of other packages."""
    with hydra.initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        try:
            composed = hydra.compose("config", overrides=overrides, return_hydra_config=True).hydra
            if "_target_" in composed.launcher or composed.sweeper["_target_"] != _SWEEPER:
                return None
            settings = OmegaConf.to_object(composed.launcher)
        except MissingConfigException as error:
            raise _no_such_option(error) from None
        except (HydraException, OmegaConfBaseException) as error:
            if isinstance(error.__cause__, ConfigurationError):
                raise error.__cause__ from None
            raise ConfigurationError(record.in_one_line(error)) from None
    assert isinstance(settings, LocalLauncher | SlurmLauncher)
    return settings


def do_job(folder: str, name: str, *, needs_gpu: str = "", threads: int | None = None) -> int:
    """Do one job of a sweep in this process, which is its own; see :func:`gmmcnn.multirun.work.do`."""
    from gmmcnn.multirun import work

    return work.do(folder, name, _command_line, needs_gpu=needs_gpu, threads=threads)


def _command_line(arguments: Sequence[str]) -> int:
    """Run a command as if these were the arguments of this process; its exit code."""
    sys.argv = ["gmmcnn", *arguments]
    try:
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0


@hydra.main(version_base="1.3", config_path=f"pkg://{CONFIG_MODULE}", config_name="config")
def _job(composed: DictConfig) -> None:
    """Run one job: the whole of a single run, or one cell of a sweep."""
    settings = record.settings_of(composed)
    folder = Path(HydraConfig.get().runtime.output_dir)

    def work() -> None:
        from gmmcnn import tasks

        with _workers(settings) as workers:
            tasks.execute(settings, folder, workers)

    exit_code = _carried_out(work, _again(settings, folder), debug=settings.debug)
    if exit_code in signals.EXIT_CODES.values():
        sys.exit(exit_code)
    if exit_code:
        _exit_codes.append(exit_code)


def _workers(settings: Settings) -> "AbstractContextManager[Workers | None]":
    """The processes that share the work, if any are asked for."""
    if settings.cluster.name == "none":
        return nullcontext()
    from gmmcnn.multirun.distributed import DaskWorkers

    return DaskWorkers(settings.cluster)


def _carried_out(work: Callable[[], None], again: str, *, debug: bool) -> int:
    """Do some work, and return an exit code; whatever goes wrong is one line, with the command that goes on."""
    try:
        from gmmcnn.hardware import gpu  # NumPy, torch and numba load only when there is work to do

        gpu.require_loadable()
        with signals.heeded():
            work()
    except tuple(signals.EXIT_CODES) as end:
        _complain(f"interrupted; goes on where it stopped with: {again}")
        return signals.EXIT_CODES[type(end)]
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the way out: one line for whatever it was
        unexpected = "" if isinstance(error, GmmcnnError) else f"unexpected {type(error).__name__}: "
        hint = f"; see the traceback with: {again} debug=true" if unexpected and not debug else ""
        _complain(f"{unexpected}{one_line(error)}{hint}")
        if debug:
            traceback.print_exc()
        return 2 if isinstance(error, ConfigurationError) else 1
    return 0


def _again(settings: Settings, folder: Path) -> str:
    """Command line by which a job goes on, with the word that its network or data set needs."""
    own = runs_foreign_code("model.name", settings.model.name) or runs_foreign_code("data.name", settings.data.name)
    return command(settings.task, folder, *(["trust=true"] if own else []))


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
    if flags.config_dir and not Path(flags.config_dir).is_dir():
        raise ConfigurationError(f"--config-dir={flags.config_dir}: no such folder; expected one with more options")
    search = [f"hydra.searchpath=[file://{Path(flags.config_dir).resolve()}]"] if flags.config_dir else []
    with hydra.initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        known = _known_names()
        for override in flags.overrides:
            _check_name(override, known)
        for job in _jobs(flags.overrides, multirun=flags.multirun):
            try:
                _composed((*job, *search), flags.config_name or "config")
            except MissingConfigException as error:
                raise _no_such_option(error) from None
            except HydraException as error:
                raise ConfigurationError(record.in_one_line(error)) from None


@cache
def _composed(overrides: tuple[str, ...], name: str) -> Settings:
    """Settings that some overrides make, laid over what :func:`_lay_over` was told last."""
    return record.settings_of(hydra.compose(name, overrides=list(overrides)))


def _jobs(overrides: list[str], *, multirun: bool) -> Sequence[Sequence[str]]:
    if not multirun:
        return [overrides]
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    return BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(overrides), max_batch_size=None)[0]


def _known_names() -> set[str]:
    """All settings, and all groups: those of settings, and those that bundle settings of several groups."""
    bundles = {folder.name for folder in files(CONFIG_MODULE).iterdir() if folder.is_dir()}
    return {*setting_names(), *GROUPS, *bundles - {"__pycache__"}}


def _check_name(override: str, known: set[str]) -> None:
    key = _parsed(override).key_or_group
    if key in MOVED:
        raise ConfigurationError(f"{key}: is {MOVED[key]} now")
    if key not in known and not key.startswith(("hydra", *_FREE_FORM)):
        raise ConfigurationError(f"{key}: no such setting{did_you_mean(key, known)} (gmmcnn --cfg job shows all)")


def _no_such_option(error: MissingConfigException) -> ConfigurationError:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    options = error.options or _options(group)  # of a list of options Hydra names none
    if not group or not options:
        return ConfigurationError(record.in_one_line(error))
    hint = did_you_mean(option, options)
    return ConfigurationError(f"{group}={option}: expected one of {', '.join(options)}{hint}")


def _options(group: str) -> list[str]:
    """Names of a group's options; none where there is no such group."""
    folder = files(CONFIG_MODULE).joinpath(group)
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir()) if folder.is_dir() else []


def _spelt_out(arguments: Sequence[str]) -> list[str]:
    """The setting in place of ``-q``, which Hydra does not know."""
    others = [argument for argument in arguments if argument not in ("-q", "--quiet")]
    return others if len(others) == len(arguments) else _beside(others, "quiet=true")


def _beside(arguments: Sequence[str], override: str) -> list[str]:
    """Arguments and one more override, next to the others: with flags between them Hydra refuses them."""
    ends = [i + 1 for i, argument in enumerate(arguments) if "=" in argument and not argument.startswith("-")]
    end = ends[-1] if ends else len(arguments)
    return [*arguments[:end], override, *arguments[end:]]


def _normalise(argument: str) -> str:
    """Write an argument as Hydra wants it where people write it otherwise."""
    if argument.lower() in ("debug=true", "debug=false"):  # the names of options of a group, not truth values
        key, value = argument.lower().split("=")
        return f"{key}='{value}'"
    return f"++{argument}" if argument.startswith(_FREE_FORM) else argument  # any key may be added there


def _going_on(arguments: list[str]) -> list[str]:
    """Let the settings of an earlier run take the place of the defaults, where ``run=FOLDER`` names its folder.

    Returns
    -------
    list of str
        The arguments that are left to be laid over them.

    Raises
    ------
    ConfigurationError
        There is no run in that folder and this is no command to start one, or its record is damaged.
    """
    _lay_over(Settings())
    flags = get_args_parser().parse_args(arguments)
    given = _given(arguments)
    if "run" not in given or flags.help or flags.hydra_help or flags.info:
        return arguments
    if flags.multirun:
        _require_side_by_side(given)
    folder = _folder(given["run"])
    recorded = record.read(folder)
    if recorded is not None:
        experiment = given["experiment"].value() if "experiment" in given else None
        if experiment and (recorded.task, recorded.experiment.name) != ("experiment", experiment):
            recorded = _with_experiment(recorded, str(experiment))
            arguments = [a for a in arguments if a not in flags.overrides or _parsed(a).key_or_group != "experiment"]
        _require_trust(folder, {"model.name": recorded.model.name, "data.name": recorded.data.name}, given)
        _lay_over(replace(recorded, task=Settings.task))
        return arguments
    earlier = record.read_earlier(folder)
    _require_settings(folder, earlier or [])
    if earlier is None and not flags.cfg:
        _require_new_run(folder, given)
    kept = [o for o in earlier or [] if _parsed(o).key_or_group not in given.keys() | set(record.OF_A_COMMAND)]
    _require_trust(folder, {_parsed(o).key_or_group: str(_parsed(o).value()) for o in kept}, given)
    return [*kept, *arguments]


def _require_settings(folder: Path, overrides: Sequence[str]) -> None:
    """Raise ConfigurationError unless stored overrides set what a run depends on, and neither flags nor Hydra."""
    known = _known_names()
    for override in overrides:
        key = "" if override.startswith("-") else _parsed(override).key_or_group
        if key not in known and not key.startswith(_FREE_FORM):
            raise ConfigurationError(
                f"{folder / record.EARLIER}: {override!r} is no setting of a run, so nothing of it is used; "
                "delete the line, or the file and give the settings with run="
            )


def _require_trust(folder: Path, stored: Mapping[str, str], given: Mapping[str, Override]) -> None:
    """Raise ConfigurationError if the task would import what a run folder names and nobody has asked for.

    Parameters
    ----------
    folder : Path
    stored : mapping
        Settings of the folder's record.
    given : mapping
        Overrides on the command line by key: a name that stands there too was chosen by who typed it.
    """
    task = str(given["task"].value()) if "task" in given else Settings.task
    if task in FROM_THE_FOLDER_ALONE or _asked(given, "trust"):
        return
    for key in ("model.name", "data.name"):
        name = stored.get(key, "")
        if runs_foreign_code(key, name) and not {key, key.partition(".")[0]} & given.keys():
            raise ConfigurationError(
                f"{folder}: its settings ask for {key}={name}, which would be imported and run; if you trust it: "
                f"{command(task, folder, 'trust=true')}"
            )


def _lay_over(settings: Settings) -> None:
    """Make these the settings that everything on the command line is laid over."""
    ConfigStore.instance().store(name="settings", node=settings)
    _composed.cache_clear()


def _folder(override: Override) -> Path:
    """Run folder that an override names, as Hydra reads it, quotes and all."""
    value = override.value()
    if override.is_delete() or value is None or isinstance(value, list | dict) or not str(value).strip():
        raise ConfigurationError(f"{override.input_line}: names no folder; {A_FOLDER}")
    return Path(str(value))


def _require_new_run(folder: Path, given: Mapping[str, Override]) -> None:
    """Raise ConfigurationError unless a run can and is to be started in a folder that holds none."""
    task = str(given["task"].value()) if "task" in given else Settings.task
    others = [
        path.name
        for path in _entries(folder)
        if path.name not in (RESULT, lock.NAME) and not path.name.endswith(".partial")
    ]
    says_something = any(key not in _NO_START and not key.startswith("hydra") for key in given)
    if others and "task" in read_json(folder / RESULT):  # a run, whose record of settings is lost
        if says_something:
            return
        raise ConfigurationError(
            f"{folder}: its {record.NAME} is lost; give the settings that it was made with beside run=, as seed=0"
        )
    if others:
        raise ConfigurationError(f"{folder}: holds {others[0]} and no run; {A_FOLDER}")
    near = did_you_mean(folder.name, [path.name for path in _entries(folder.absolute().parent) if path != folder])
    if task not in STARTING and task in TASKS:
        raise ConfigurationError(f"{folder}: holds no run, which task={task} needs{near}")
    if not says_something:
        start = command(task, folder, "seed=0")
        raise ConfigurationError(f"{folder}: holds no run to go on with{near}; to start one, give a setting: {start}")


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _with_experiment(recorded: Settings, name: str) -> Settings:
    """Settings of another experiment in the same folder, with all that was changed in the recorded one's."""
    bundle = [f"experiment={recorded.experiment.name}"] if recorded.task == "experiment" else []
    with hydra.initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        try:
            before, after = (
                record.values_of(record.settings_of(hydra.compose("config", overrides=overrides)))
                for overrides in (bundle, [f"experiment={name}"])
            )
        except MissingConfigException as error:
            raise _no_such_option(error) from None
    own = {key: value for key, value in record.values_of(recorded).items() if value != before[key]}
    merged = OmegaConf.structured(Settings)
    for key, value in (after | own | {"experiment.name": name}).items():
        if key not in record.OF_A_COMMAND:
            OmegaConf.update(merged, key, value, merge=False)
    return record.settings_of(merged)


def _given(arguments: Sequence[str]) -> dict[str, Override]:
    """Overrides among some arguments, by key."""
    overrides = get_args_parser().parse_args(arguments).overrides
    return {override.key_or_group: override for override in map(_parsed, overrides)}


def _asked(given: Mapping[str, Override], key: str) -> bool:
    """Whether something is switched on."""
    return key in given and given[key].value() is True


def _key(override: str) -> str:
    return str(_parsed(override).key_or_group)


def _parsed(override: str) -> Override:
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        key, equals, value = override.partition("=")
        written = f"{key}='a=b'" if not value or value[0] in "{['\"" else for_a_shell(f"{key}={quoted(value)}")
        hint = f"; a value that holds = or spaces needs quotes within: {written}" if equals else ""
        raise ConfigurationError(f"{override!r} is not key=value{hint}") from None


def _complain(message: str) -> None:
    with suppress(OSError):  # nobody reads it, and the exit code says it, too
        sys.stderr.write(f"gmmcnn: {message}\n")
        sys.stderr.flush()
