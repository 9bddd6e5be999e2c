"""What stands for harmless Python objects in files of `torch.save`: nothing of theirs is called.

Checkpoints of other packages often hold a NumPy number, arrays or an `argparse.Namespace` beside their
weights. Numbers and arrays are rebuilt from their bytes here; the rest becomes an `Ignored`.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

_DTYPES = frozenset("f2 f4 f8 i1 i2 i4 i8 u1 b1".split())


class Ignored:
    """Stands for an object whose content nobody needs."""

    def __new__(cls, *arguments: object) -> "Ignored":
        """Takes what the object's class would take."""
        del arguments
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Takes the object's attributes and forgets them."""


class _Dtype:
    """Stands for a NumPy dtype."""

    def __init__(self, name: object = None, *flags: object) -> None:
        del flags
        self.name = name
        self.order: object = "|"

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.order = state[1]

    def numbers(self, data: object) -> "np.ndarray[Any, Any]":
        """The numbers in `data`, in the byte order of this machine.

        Raises:
            ValueError: these are no plain numbers.
        """
        if self.name not in _DTYPES or self.order not in ("<", ">", "|", "="):
            raise ValueError(f"an array of {self.name}")
        if not isinstance(data, bytes):
            raise ValueError("an array without bytes")
        dtype = np.dtype(f"{self.order}{self.name}")
        return np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))


class _Array:
    """Stands for a NumPy array."""

    tensor: torch.Tensor | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype) or not isinstance(shape, tuple):
            raise ValueError("an array of another version of NumPy")
        numbers = dtype.numbers(data)
        if math.prod(shape) != numbers.size:
            raise ValueError("an array of another size than its data")
        array = numbers.reshape(shape[::-1]).T if fortran else numbers.reshape(shape)
        self.tensor = torch.from_numpy(np.array(array, order="C"))


def _reconstruct(*arguments: object) -> _Array:
    del arguments
    return _Array()


def _scalar(dtype: object, data: object) -> float | int | bool:
    if not isinstance(dtype, _Dtype):
        raise ValueError("a number of another version of NumPy")
    value: float | int | bool = dtype.numbers(data).item()
    return value


def _bytes(text: str, encoding: str) -> bytes:
    """How pickles of protocol 2 hold bytes."""
    return text.encode("latin1" if encoding == "latin1" else "ascii")


def _no_bytes(*arguments: object) -> bytes:
    """How pickles of protocol 2 hold no bytes at all."""
    if arguments:
        raise ValueError("bytes of an argument")
    return b""


STAND_INS: tuple[tuple[Callable[..., Any], str], ...] = (
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    (_Array, "numpy.ndarray"),
    (_Dtype, "numpy.dtype"),
    (_bytes, "_codecs.encode"),
    (_no_bytes, "builtins.bytes"),
    (Ignored, "argparse.Namespace"),
    (Ignored, "pathlib.PosixPath"),
    (Ignored, "pathlib.WindowsPath"),
    (Ignored, "pathlib._local.PosixPath"),
    (Ignored, "pathlib._local.WindowsPath"),
    (Ignored, "datetime.datetime"),
    (Ignored, "datetime.timedelta"),
)
"""Stand-ins with the names of what they stand for, as `torch.serialization.safe_globals` takes them."""


def without_stand_ins(value: Any) -> Any:
    """Replaces arrays by tensors, within dicts, lists and tuples."""
    if isinstance(value, _Array):
        return value.tensor
    if isinstance(value, dict):
        for key, item in value.items():
            value[key] = without_stand_ins(item)
    elif isinstance(value, list):
        value[:] = map(without_stand_ins, value)
    elif type(value) is tuple:
        return tuple(map(without_stand_ins, value))
    return value
