"""What the trainer calls between epochs."""

from collections.abc import Iterator
from typing import Protocol

from fastsimsiam.methods.base import Method


class Evaluator(Protocol):
    """Scores a method without changing it."""

    def __call__(self, method: Method) -> Iterator[tuple[str, float]]:
        """Yields (name, value) for each score."""
