"""What every setting means: the words that stand beside it in :mod:`gmmcnn.config`, for ``gmmcnn --help``."""

import ast
import inspect
import json
import re
import textwrap
from dataclasses import MISSING, fields
from functools import cache
from typing import Any

from gmmcnn import config

_WIDTH = 110
_INDENT = "      "


def settings_text() -> str:
    """Every setting with its default and its meaning, in the groups' order; plain text of at most 110 columns."""
    own = [name for name in _meanings()["Settings"] if name not in config.GROUPS]
    parts = [_section("Of every task", config.Settings, own, prefix="")]
    for group, kind in config.GROUPS.items():
        summary, *_ = (inspect.getdoc(kind) or "").split("\n\n")
        title = f"{group}: {_plain(summary)}"
        parts.append(_section(title, kind, [f.name for f in fields(kind)], prefix=f"{group}."))
    return "\n\n".join(parts)


def meaning(name: str) -> str:
    """What a setting means, in one paragraph without marks.

    Parameters
    ----------
    name : str
        Dotted, as on the command line: ``probe.samples``.
    """
    group, _, key = name.rpartition(".")
    kind = config.GROUPS[group] if group else config.Settings
    return _plain(_meanings()[kind.__name__].get(key, ""))


def _section(title: str, kind: Any, names: list[str], *, prefix: str) -> str:
    defaults = {f.name: f for f in fields(kind)}
    lines = textwrap.wrap(title, _WIDTH, initial_indent="  ", subsequent_indent="    ")
    for name in names:
        lines.append(f"    {prefix}{name}={_default(defaults[name])}")
        lines += textwrap.wrap(meaning(prefix + name), _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)
    return "\n".join(lines)


def _default(setting: Any) -> str:
    """A default as the command line writes it."""
    value = setting.default if setting.default is not MISSING else setting.default_factory()
    return value if isinstance(value, str) else json.dumps(value)


@cache
def _meanings() -> dict[str, dict[str, str]]:
    """Class → name of a setting → the text under it, ascending as they stand in the source."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(config)).body:
        if isinstance(node, ast.ClassDef):
            texts = found.setdefault(node.name, {})
            for statement, following in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                    texts[statement.target.id] = _string(following)
    return found


def _string(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return node.value.value
    return ""


def _plain(text: str) -> str:
    """Text without the marks of reStructuredText, on one line, with None as the command line writes it."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", text.replace("``", ""))
    return " ".join(re.sub(r"\bNone\b", "null", text).split())
