"""From the names that a user types to the objects they mean."""

import difflib
import importlib
import inspect
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from gmmcnn.errors import ConfigurationError, one_line

_NETWORKS = re.compile(
    r"(gmmcnn\.models(\.plain|\.resnet)?|torch\.nn|torchvision\.models(\.(detection|quantization|segmentation|video))?)"
    r"[.:][A-Za-z]\w*"
)
"""Where the packages that this one is built on publish networks."""
_PLAIN = re.compile(r"(?!(?i:null|true|false|nan|inf|[+-]?\.?\d[\d_.e+-]*)$)[A-Za-z0-9_./:@%+-]+")
"""What Hydra reads as a text without quotes."""


def is_dotted(name: str) -> bool:
    """Tell ``package.module:Class`` and ``package.module.Class`` from the plain name of something built in."""
    return "." in name or ":" in name


def runs_foreign_code(key: str, name: str) -> bool:
    """Whether a stored name makes whoever looks it up run code that neither gmmcnn, torch nor torchvision publishes.

    Only what builds a network is let through: of these packages other functions load and write files. A data set of
    torchvision's unpickles, downloads and writes where its arguments say.

    Parameters
    ----------
    key : str
        ``model.name`` or ``data.name``.
    name : str
    """
    return is_dotted(name) and not (key == "model.name" and _NETWORKS.fullmatch(name))


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """End of a message about a misspelt name: ``"; did you mean k_max?"``, empty where nothing valid is near."""
    nearest = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def command(task: str, run: Path | str, *more: str, sweep: bool = False) -> str:
    """Command line of a task in a run folder, to be pasted into a shell whatever the folder is called."""
    words = (f"task={task}", f"run={quoted(str(run))}", *more)
    return " ".join(["gmmcnn", *(["-m"] if sweep else []), *map(for_a_shell, words)])


def quoted(text: str) -> str:
    """Write a text as Hydra reads it: in quotes where its grammar would make something else of it.

    It does of ``=``, ``,``, ``(``, ``#``, of any letter beyond ASCII, and of numbers.
    """
    if _PLAIN.fullmatch(text):
        return text
    escaped = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text)
    return f"'{escaped}'"


def for_a_shell(word: str) -> str:
    """Quote a word of a command line; in double quotes where it holds single ones and nothing else to be quoted."""
    single = shlex.quote(word)
    return f'"{word}"' if single != word and "'" in word and not set(word) & set('"$`\\!') else single


def unknown(key: str, name: str, choices: Iterable[str]) -> ConfigurationError:
    """Error for a misspelt name, with the nearest valid one first."""
    choices = sorted(choices)
    valid = f"{', '.join(choices)}, or a dotted name package.module:Class"
    return ConfigurationError(f"{key}={name}: expected {valid}{did_you_mean(name, choices)}")


def import_dotted(key: str, name: str) -> Callable[..., Any]:
    """Import the class or factory called ``package.module:Class`` or ``package.module.Class``.

    Modules in the working folder are found too, as ``python -m`` would find them.

    Raises
    ------
    ConfigurationError
        The module cannot be imported, has no such attribute, or the attribute cannot be called.
    """
    module_name, _, attribute = name.rpartition(":" if ":" in name else ".")
    working_folder = str(Path.cwd())
    if working_folder not in sys.path:
        sys.path.append(working_folder)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the user's module raises while it is imported
        raise ConfigurationError(
            f"{key}={name}: cannot import {module_name!r} ({one_line(error)}); "
            "install it, or run where it can be imported"
        ) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        attributes = [a for a in dir(module) if not a.startswith("_") and callable(getattr(module, a))]
        hint = did_you_mean(attribute, attributes)
        raise ConfigurationError(f"{key}={name}: {module_name!r} has no class or function {attribute!r}{hint}")
    return found


def check_arguments(key: str, function: Callable[..., Any], kwargs: Mapping[str, Any]) -> None:
    """Raise ConfigurationError unless ``function(**kwargs)`` fits the signature of ``function``."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # some built-in callables have none
        return
    try:
        signature.bind(**kwargs)
    except TypeError as error:
        accepted = ", ".join(signature.parameters) or "none"
        raise ConfigurationError(f"{key}: {error}; {function.__name__} accepts {accepted}") from error


def accepts(function: Callable[..., Any], argument: str) -> bool:
    """Whether ``function`` has a parameter of that name, or takes any."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:
        return False
    return argument in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
