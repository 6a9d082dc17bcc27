"""What may be on a disk after the power went: replayed from a log that ``shim.c`` wrote.

POSIX promises that what was synchronised is there: a file's content after an ``fsync`` of the file, names after one of
their folder. Of everything since, any part may have got there, in any order: a rename may be kept whose file's content
is lost.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias


@dataclass(frozen=True)
class Change:
    """One line of the log: what was done, to what, where in a file, with which content."""

    kind: str
    path: str
    other: str
    offset: int
    data: bytes


def read_log(path: Path) -> list[Change]:
    """All changes in the order in which they were made."""
    changes = []
    with path.open("rb") as log:
        for line in log:
            kind, name, other, offset, n_bytes = line.decode().rstrip("\n").split("\t")
            changes.append(Change(kind, name, other, int(offset), log.read(int(n_bytes))))
    return changes


@dataclass
class _File:
    """Content that is on the disk, and what was done to it since."""

    synced: bytes = b""
    since: list[Change] = field(default_factory=list)


@dataclass
class _Folder:
    """Names on the disk, and what was done to them since: each item is done at once, or not."""

    synced: "dict[str, _Node]" = field(default_factory=dict)
    now: "dict[str, _Node]" = field(default_factory=dict)
    since: "list[dict[str, _Node | None]]" = field(default_factory=list)

    def set(self, **names: "_Node | None") -> None:
        """Give names to files, or take them away."""
        self.since.append(names)
        _update(self.now, names)


_Node: TypeAlias = _File | _Folder


def _update(names: "dict[str, _Node]", with_: "dict[str, _Node | None]") -> None:
    for name, node in with_.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


class Disk:
    """A folder, as programs see it and as it is on the disk.

    Parameters
    ----------
    folder : str
        Empty, or not there, when the log began.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.root = _Folder()

    def do(self, change: Change) -> None:  # noqa: C901 - a case for each kind of change
        """Make one more change."""
        if change.path == self.folder:  # its own name is not ours to lose
            if change.kind == "sync":
                self._sync(self.root)
            return
        parent, name = self._parent(change.path)
        if parent is None:  # a file that has no name any more
            return
        node = parent.now.get(name)
        match change.kind:
            case "create" if node is None:
                parent.set(**{name: _File()})
            case "create empty":
                self._emptied(parent, name, change)
            case "write" | "truncate":
                self._file(node).since.append(change)
            case "mkdir":
                parent.set(**{name: _Folder()})
            case "remove":
                parent.set(**{name: None})
            case "sync":
                assert node is not None, change.path
                self._sync(node)
            case "rename":
                target, new = self._parent(change.other)
                assert target is parent, f"{change.path} is moved to another folder"
                parent.set(**{name: None, new: node})
            case other if other not in ("open", "create"):
                raise NotImplementedError(other)

    def _emptied(self, parent: _Folder, name: str, change: Change) -> None:
        if name in parent.now:
            self._file(parent.now[name]).since.append(Change("truncate", change.path, "", 0, b""))
        else:
            parent.set(**{name: _File()})

    def left(self, chance: float, draw: random.Random) -> dict[str, bytes | None]:
        """What is there after a loss of power: path → content, None for a folder.

        Parameters
        ----------
        chance : float
            That a change which was not synchronised got to the disk: 1 for all, 0 for none.
        draw : random.Random
        """
        return dict(self._left(self.root, "", chance, draw))

    def _left(
        self, folder: _Folder, path: str, chance: float, draw: random.Random
    ) -> "Iterator[tuple[str, bytes | None]]":
        names = dict(folder.synced)
        for change in folder.since:
            if draw.random() < chance:
                _update(names, change)
        for name, node in names.items():
            if isinstance(node, _Folder):
                yield f"{path}{name}", None
                yield from self._left(node, f"{path}{name}/", chance, draw)
            else:
                yield f"{path}{name}", _content(node.synced, [c for c in node.since if draw.random() < chance])

    def _parent(self, path: str) -> tuple[_Folder | None, str]:
        *folders, name = path.removeprefix(self.folder + "/").split("/")
        at: _Node | None = self.root
        for folder in folders:
            at = at.now.get(folder) if isinstance(at, _Folder) else None
        return (at, name) if isinstance(at, _Folder) else (None, name)

    @staticmethod
    def _file(node: "_Node | None") -> _File:
        assert isinstance(node, _File)
        return node

    @staticmethod
    def _sync(node: _Node) -> None:
        if isinstance(node, _File):
            node.synced = _content(node.synced, node.since)
        else:
            node.synced = dict(node.now)
        node.since.clear()


def _content(synced: bytes, since: list[Change]) -> bytes:
    content = bytearray(synced)
    for change in since:
        if change.kind == "truncate":
            del content[change.offset :]
            content.extend(bytes(change.offset - len(content)))
        else:
            content.extend(bytes(max(0, change.offset - len(content))))
            content[change.offset : change.offset + len(change.data)] = change.data
    return bytes(content)


def restore(left: dict[str, bytes | None], folder: Path) -> None:
    """Put into a new folder what a disk holds."""
    folder.mkdir()
    for name, content in left.items():
        if content is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)
