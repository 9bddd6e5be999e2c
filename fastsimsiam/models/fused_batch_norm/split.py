"""How a reduction kernel distributes the pixels and channels of a map over its programs."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Tile:
    """The piece of a map that a program sums at a time, and the number of programs.

    Attributes:
        rows, channels: pixels and channels of a tile.
        warps: warps per program.
        programs: approximate number of programs, over all parts and groups of channels.
        stages: tiles in flight, the one that is summed included; with 1, other programs of the same
            processor hide the latency.
    """

    rows: int = 32
    channels: int = 64
    warps: int = 4
    programs: int = 2112
    stages: int = 1

    def __str__(self) -> str:
        """For a table."""
        return (
            f"{self.rows}x{self.channels} {self.warps} warps {self.programs} programs "
            f"{self.stages} stages"
        )


# 64 channels in bfloat16 are a cache line, and 128 threads then read 16 bytes each, twice. The programs
# are a multiple of an H200's 132 processors, each of which holds four to eight at a time. The number of
# parts is not part of Inductor's cache key: after changing it, run once with
# TORCHINDUCTOR_FORCE_DISABLE_CACHES=1.
TILE = Tile()


def rows_per_part(rows: int, channels: int, tile: Tile) -> int:
    """Pixels that a program sums, a multiple of the tile's rows; the last part may have fewer.

    Args:
        rows: pixels of the map over all images.
        channels: channels of the map.
        tile: tile of a program.
    """
    tiles = -(-rows // tile.rows)
    return tile.rows * -(-tiles * num_groups(channels, tile) // tile.programs)


def num_parts(rows: int, channels: int, tile: Tile) -> int:
    """Number of parts of the pixels that are summed separately."""
    return -(-rows // rows_per_part(rows, channels, tile))


def num_groups(channels: int, tile: Tile) -> int:
    """Number of groups of channels."""
    return -(-channels // tile.channels)
