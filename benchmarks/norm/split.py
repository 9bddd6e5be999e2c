"""How the pixels and channels of a map are dealt out to the programs of a reducing kernel."""

from dataclasses import dataclass

# Of a tile: 64 channels in bfloat16 are a cache line, and 128 threads then read 16 bytes each, twice.
_ROWS = 32
_CHANNELS = 64
_WARPS = 4
# Programs that keep the memory of a GPU of a hundred or so processors busy, a few for each of them.
_PROGRAMS = 2048


@dataclass(frozen=True, kw_only=True)
class Split:
    """What every program does.

    Attributes:
        rows, channels: of a tile.
        rows_per_part: pixels that a program sums, a multiple of `rows`; the last part may have fewer.
        parts: of the pixels.
        grid: programs: parts, and groups of channels.
        warps: of a program.
    """

    rows: int
    channels: int
    rows_per_part: int
    parts: int
    grid: tuple[int, int]
    warps: int


def split(rows: int, channels: int) -> Split:
    """For a map of so many pixels, all images together, and channels."""
    groups = -(-channels // _CHANNELS)
    tiles = -(-rows // _ROWS)
    tiles_per_part = -(-tiles * groups // _PROGRAMS)
    rows_per_part = tiles_per_part * _ROWS
    parts = -(-rows // rows_per_part)
    return Split(
        rows=_ROWS,
        channels=_CHANNELS,
        rows_per_part=rows_per_part,
        parts=parts,
        grid=(parts, groups),
        warps=_WARPS,
    )
