"""Names of many images in two arrays: a Python string for each would take gigabytes."""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from fastsimsiam.system.text import as_bytes

_CHUNK = 1 << 16
_NEWLINE = ord("\n")


class Names(Sequence[str]):
    r"""N names, which are decoded when they are asked for. Equal to any sequence of the same names.

    Attributes:
        content: (bytes,) uint8: each name, followed by a newline; a name may have newlines of its own.
        ends: (N,) int64 position of the newline that follows each name.
    """

    def __init__(self, content: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64]) -> None:
        """Takes arrays as they are described above."""
        self.content = content
        self.ends = ends

    @classmethod
    def of(cls, names: Iterable[str]) -> "Names":
        """Names from strings."""
        encoded = [as_bytes(name) for name in names]
        lengths = np.fromiter((len(name) + 1 for name in encoded), np.int64, len(encoded))
        content = b"\n".join((*encoded, b"")) if encoded else b""
        return cls(np.array(memoryview(content), np.uint8), np.cumsum(lengths) - 1)

    @classmethod
    def checked(cls, content: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64]) -> "Names":
        """Names from arrays of a file; raises a ValueError unless they are as described above."""
        if len(content) != (int(ends[-1]) + 1 if len(ends) else 0):
            raise ValueError("no names")
        before = -1
        for first in range(0, len(ends), _CHUNK):
            part = ends[first : first + _CHUNK]
            if (np.diff(part, prepend=before) < 1).any() or int(part[-1]) >= len(content):
                raise ValueError("no names")
            if (content[part] != _NEWLINE).any():
                raise ValueError("no names")
            before = int(part[-1])
        return cls(content, ends)

    @classmethod
    def joined(cls, parts: Sequence["Names"]) -> "Names":
        """The names of several, one after the other."""
        before = np.cumsum([0] + [len(part.content) for part in parts])
        ends = [part.ends + start for part, start in zip(parts, before[:-1], strict=True)]
        if not parts:
            return cls.of(())
        return cls(np.concatenate([part.content for part in parts]), np.concatenate(ends))

    def __len__(self) -> int:
        """Number of names."""
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "list[str]": ...
    def __getitem__(self, index: int | slice) -> "str | list[str]":
        """A name, or a list of some."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index = int(index) % len(self)
        start = int(self.ends[index - 1]) + 1 if index else 0
        return os.fsdecode(self.content[start : int(self.ends[index])].tobytes())

    def __iter__(self) -> Iterator[str]:
        """Yields every name."""
        start = 0
        for first in range(0, len(self), _CHUNK):
            ends = self.ends[first : first + _CHUNK].tolist()
            content = self.content[start : ends[-1] + 1].tobytes()
            name = 0
            for end in ends:
                yield os.fsdecode(content[name : end - start])
                name = end - start + 1
            start = ends[-1] + 1

    def __eq__(self, other: object) -> bool:
        """Whether another sequence has the same names."""
        if isinstance(other, Names):
            return np.array_equal(self.content, other.content) and np.array_equal(
                self.ends, other.ends
            )
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """The first names."""
        more = ", ..." if len(self) > 3 else ""
        return f"<{len(self)} names: {', '.join(map(repr, self[:3]))}{more}>"

    def lines(self) -> "memoryview":
        """All names as bytes, each but the last followed by a newline."""
        return self.content[:-1].data

    def taken(self, index: npt.NDArray[Any]) -> "Names":
        """The names at some positions, in their order."""
        return Names.of(self[int(i)] for i in index)
