"""How the kernels of the stem distribute pixels and channels over their programs."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PoolTile:
    """The piece of a pooled map that a program computes.

    Attributes:
        pixels: pixels of the pooled map.
        channels: channels.
        warps: warps per program.
    """

    pixels: int = 16
    channels: int = 64
    warps: int = 4

    def __str__(self) -> str:
        """For a table."""
        return f"{self.pixels}x{self.channels} {self.warps} warps"


# 64 channels in bfloat16 are a cache line. A thread has eight elements: 16 bytes of a map and 8 of the
# positions. With more, Triton would read 16 positions a thread, and exchange the rest through shared
# memory to store it.
POOL_TILE = PoolTile()


@dataclass(frozen=True, kw_only=True)
class RearrangeTile:
    """Output pixels per program, and its warps, of the rearrangement of views."""

    pixels: int = 128
    warps: int = 4

    def __str__(self) -> str:
        """For a table."""
        return f"{self.pixels} {self.warps} warps"


REARRANGE_TILE = RearrangeTile()


def pooled_size(size: int) -> int:
    """Side of a map after pooling over 3 pixels with stride 2 and padding 1."""
    return (size + 1) // 2
