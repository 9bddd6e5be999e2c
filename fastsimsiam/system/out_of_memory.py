"""Tells an error of too little memory from others; torch raises several kinds."""

from collections.abc import Iterator
from contextlib import contextmanager

from fastsimsiam.errors import UserError

_CPU_WORDS = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory")


def exhausted_memory(error: BaseException) -> str | None:
    """Which memory was too small, for a sentence; None for other errors."""
    # By name: the command line asks, too, and loads no torch.
    if type(error).__name__ == "OutOfMemoryError":
        return "the GPU's memory"
    if isinstance(error, MemoryError) or any(word in str(error) for word in _CPU_WORDS):
        return "the memory"
    return None


@contextmanager
def memory_told(what: str, fix: str) -> Iterator[None]:
    """Turns an error of too little memory into one line.

    Args:
        what: what did not fit, after "is too small for".
        fix: what the user can do.

    Raises:
        UserError: the memory is too small.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        where = exhausted_memory(error)
        if where is None:
            raise
        raise UserError(f"{where} is too small for {what}: {fix}") from error
