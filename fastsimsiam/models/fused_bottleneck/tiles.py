"""Tile sizes of the kernels, and how these distribute the pixels of a map over programs."""

from dataclasses import dataclass
from typing import Literal

Operation = Literal["moments", "join", "join-gradient", "masked-gradient", "products"]


@dataclass(frozen=True, kw_only=True)
class Tile:
    """What a program computes at a time.

    Attributes:
        rows, columns: of the result's tile: pixels and output channels; for `products`, left and right
            channels.
        depth: elements summed between two loads: input channels; for `products`, pixels.
        warps: warps per program.
        stages: tiles of the operands in flight.
        early: of `join` and `join-gradient`: what is added is loaded before the product.
        programs: of `products`: the most that there are, unless tiles are more; they share the pixels.
    """

    rows: int = 128
    columns: int = 128
    depth: int = 64
    warps: int = 8
    stages: int = 3
    early: bool = False
    programs: int = 264

    def __str__(self) -> str:
        """For a table."""
        return (
            f"{self.rows}x{self.columns}x{self.depth} {self.warps} warps {self.stages} stages"
            f"{' early' if self.early else ''} {self.programs} programs"
        )


_WIDE = Tile(rows=64)
_FEW_WARPS = Tile(rows=64, warps=4)
_LARGE = Tile()
_HALF = Tile(columns=64)

# Of each operation, the candidates for blocks whose narrow maps have at most 128 channels, which memory
# bounds, and for the others, which arithmetic bounds. The first of a list is used, because it was the
# fastest on an H200; the others are what `benchmarks.conv1x1` times it against. An H200 has 132
# processors with 228 KB of shared memory and 65,536 registers each: most of the first kind leave room
# for two or more programs on each, of which one computes while others load. None spills registers.
CANDIDATES: dict[Operation, tuple[tuple[Tile, ...], tuple[Tile, ...]]] = {
    "moments": (
        (_LARGE, _FEW_WARPS, _WIDE, Tile(rows=64, stages=4)),
        (_LARGE, Tile(columns=256), Tile(rows=64, columns=256), _WIDE),
    ),
    "join": (
        (_FEW_WARPS, Tile(rows=64, columns=64, warps=4), _WIDE, Tile(rows=64, early=True), _HALF),
        (_LARGE, Tile(rows=64, columns=256), _WIDE, Tile(rows=64, early=True), _HALF),
    ),
    "join-gradient": (
        (_FEW_WARPS, Tile(rows=64, columns=64, warps=4), Tile(rows=64, early=True), _WIDE, _HALF),
        (_WIDE, _HALF, Tile(rows=64, columns=256), Tile(rows=64, early=True), _LARGE),
    ),
    "masked-gradient": (
        (_HALF, Tile(rows=64, columns=64, warps=4), _LARGE, _WIDE),
        (_LARGE, _HALF, Tile(rows=64, columns=256), _WIDE),
    ),
    "products": (
        (_LARGE, Tile(stages=4), _WIDE, Tile(depth=32, stages=4)),
        (_LARGE, Tile(columns=256), _WIDE, Tile(rows=64, columns=256)),
    ),
}
_NARROW = 128
# Tiles by the arguments of `tile_of`, where a measurement prefers another than the first candidate; see
# `benchmarks.conv1x1`. The number of parts follows from them and is not part of Inductor's cache key:
# after a change, run once with TORCHINDUCTOR_FORCE_DISABLE_CACHES=1.
MEASURED: dict[tuple[Operation, int, int], Tile] = {}


def candidates(operation: Operation, left: int, right: int) -> tuple[Tile, ...]:
    """The tiles to try; arguments as of `tile_of`."""
    narrow, others = CANDIDATES[operation]
    return narrow if min(left, right) <= _NARROW else others


def tile_of(operation: Operation, left: int, right: int) -> Tile:
    """The tile that is used.

    Args:
        operation: the kernel.
        left, right: the shape of the convolution's weight, or of the products.
    """
    measured = MEASURED.get((operation, int(left), int(right)))
    return candidates(operation, left, right)[0] if measured is None else measured


def fitted(size: int, channels: int) -> int:
    """The largest side of a tile, at most `size`, that divides the channels."""
    while channels % size:
        size //= 2
    return size


def num_tiles(rows: int, tile: Tile) -> int:
    """Number of tiles that a map's pixels make, each of which is a part of `moments`' sums."""
    return -(-rows // tile.rows)


def rows_per_part(rows: int, groups: int, tile: Tile) -> int:
    """Pixels of a part of `products`, a multiple of the tile's depth; the last may have fewer.

    Args:
        rows: pixels of the map over all images.
        groups: programs that each part needs.
        tile: the kernel's.
    """
    parts = max(1, tile.programs // groups)
    return tile.depth * -(-rows // (tile.depth * parts))


def num_parts(rows: int, groups: int, tile: Tile) -> int:
    """Number of parts of the pixels that `products` sums separately."""
    return -(-rows // rows_per_part(rows, groups, tile))


def product_parts(rows: int, left: int, right: int) -> int:
    """Number of parts of `products` with the tile that is used."""
    tile = tile_of("products", left, right)
    groups = (left // fitted(tile.rows, left)) * (right // fitted(tile.columns, right))
    return num_parts(rows, groups, tile)
