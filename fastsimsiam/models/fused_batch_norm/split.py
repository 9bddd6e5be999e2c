"""How the pixels and channels of a map are dealt out to the programs of a reducing kernel."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Tile:
    """What a program sums at a time, and how many programs there are.

    Attributes:
        rows, channels: pixels and channels of a tile.
        warps: of a program.
        programs: about so many, all parts and groups of channels together.
        stages: tiles that are on their way while one is summed; 1: none, the other programs of a
            processor have to fill the time.
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
# are a multiple of an H200's 132 processors, of which each holds four to eight at a time. The number of
# parts is not among what Inductor keeps compiled graphs by: after a change of it, once with
# TORCHINDUCTOR_FORCE_DISABLE_CACHES=1.
TILE = Tile()


def rows_per_part(rows: int, channels: int, tile: Tile) -> int:
    """Pixels that a program sums, a multiple of the tile's; the last part may have fewer.

    Args:
        rows: pixels of the map, all images together.
        channels: of the map.
        tile: see there.
    """
    tiles = -(-rows // tile.rows)
    return tile.rows * -(-tiles * num_groups(channels, tile) // tile.programs)


def num_parts(rows: int, channels: int, tile: Tile) -> int:
    """Parts of the pixels, each summed by itself."""
    return -(-rows // rows_per_part(rows, channels, tile))


def num_groups(channels: int, tile: Tile) -> int:
    """Groups of channels."""
    return -(-channels // tile.channels)
