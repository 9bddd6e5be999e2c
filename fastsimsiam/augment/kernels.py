"""The photometric part of views as three Triton kernels, for crops on a GPU.

Shapes: N images, which are the B x V crops of one size in the order of the crops; S side; P parts of an
image whose gray levels are summed separately. Pixels are numbered along the rows of an image, and a
program holds a number of them as three vectors: red, green, blue.

1. `gray_sums_kernel` sums the gray levels that contrast needs, over a part of an image.
2. `plain_kernel` writes the images without blur.
3. `blurred_kernel` writes the images with blur, in tiles. It loads a tile with its halo, edge pixels
   repeated, and colors it in registers; the horizontal blur is a product with a band matrix from the
   right, the vertical blur one from the left. Tensor cores do what needs shared memory and shifts
   otherwise, nothing in between is stored, and the halo's colors are computed twice, which costs less
   than to store them. Operands are float16: an error of 2^-12 in [0, 1], a sixteenth of a gray level.

Two kernels write because a tile with a halo wastes half of its pixels on an image without blur. A
program whose image is another kernel's does nothing; so no list of images has to be made, which would
wait for the host. All branches depend on the image alone: all threads of a program take the same one.
Crops are read twice, views are written once; channels are interleaved before they are stored, so that
neighboring threads write neighboring elements.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsimsiam.augment import table as columns
from fastsimsiam.augment.table import Tiles

_COLUMNS = tl.constexpr(columns.COLUMNS)
_PER_STEP = tl.constexpr(columns.PER_STEP)
_BEFORE_CONTRAST = tl.constexpr(columns.BEFORE_CONTRAST)
_GRAY_FIRST = tl.constexpr(columns.GRAY_FIRST)
_GRAY_LAST = tl.constexpr(columns.GRAY_LAST)
_FLIP = tl.constexpr(columns.FLIP)
_INVERTED_FROM = tl.constexpr(columns.INVERTED_FROM)
_EXPONENT = tl.constexpr(columns.EXPONENT)
_WEIGHT = tl.constexpr(columns.WEIGHT)
_SCALE = tl.constexpr(columns.SCALE)
_SHIFT = tl.constexpr(columns.SHIFT)
_LEVEL = tl.constexpr(1 / 255)


@triton.jit
def _loaded(image, pixel, inside):
    """Three planes in [0, 1]; undefined outside."""
    at = image + 3 * pixel
    red = tl.load(at, mask=inside).to(tl.float32)
    green = tl.load(at + 1, mask=inside).to(tl.float32)
    blue = tl.load(at + 2, mask=inside).to(tl.float32)
    return red * _LEVEL, green * _LEVEL, blue * _LEVEL


@triton.jit
def _luma(red, green, blue):
    return 0.299 * red + 0.587 * green + 0.114 * blue


@triton.jit
def _clamped(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def _rotated(red, green, blue, turn):
    """As `color.rotate_hue`, with one division, and the hue brought to [0, 6) once."""
    value = tl.maximum(tl.maximum(red, green), blue)
    chroma = value - tl.minimum(tl.minimum(red, green), blue)
    is_red = value == red
    is_green = value == green
    difference = tl.where(is_red, green - blue, tl.where(is_green, blue - red, red - green))
    sextant = tl.where(is_red, 0.0, tl.where(is_green, 2.0, 4.0))
    sextant += difference / tl.where(chroma > 0, chroma, 1.0) + 6.0 * turn
    sextant -= 6.0 * tl.floor(sextant * (1.0 / 6.0))
    least = value - chroma
    return (
        least + chroma * _clamped(tl.abs(sextant - 3.0) - 1.0),
        least + chroma * _clamped(2.0 - tl.abs(sextant - 2.0)),
        least + chroma * _clamped(2.0 - tl.abs(sextant - 4.0)),
    )


@triton.jit
def _jittered(red, green, blue, row, steps, mean):
    """The first `steps` operations in the order of the image whose row of the table this is."""
    for step in range(4):
        at = row + _PER_STEP * step
        direct = tl.where(step < steps, tl.load(at), 1.0)
        turn = tl.where(step < steps, tl.load(at + 3), 0.0)
        if turn != 0:
            red, green, blue = _rotated(red, green, blue, turn)
        elif direct != 1:  # with a factor of 1, nothing changes
            offset = _luma(red, green, blue) * tl.load(at + 1) + tl.load(at + 2) * mean
            red = _clamped(direct * red + offset)
            green = _clamped(direct * green + offset)
            blue = _clamped(direct * blue + offset)
    return red, green, blue


@triton.jit
def _gray_if(drawn, red, green, blue):
    if drawn != 0:
        gray = _luma(red, green, blue)
        red = gray
        green = gray
        blue = gray
    return red, green, blue


@triton.jit
def _colored(
    image,
    pixel,
    inside,
    row,
    sums,
    number,
    PIXELS: tl.constexpr,
    PARTS: tl.constexpr,
    JITTER: tl.constexpr,
):
    """Everything up to the blur."""
    red, green, blue = _loaded(image, pixel, inside)
    red, green, blue = _gray_if(tl.load(row + _GRAY_FIRST), red, green, blue)
    if JITTER:
        total = tl.load(sums + number * PARTS)
        for part in range(1, PARTS):
            total += tl.load(sums + number * PARTS + part)
        # PIL rounds the mean to a whole gray level.
        mean = tl.floor(total * (255.0 / PIXELS) + 0.5) * _LEVEL
        red, green, blue = _jittered(red, green, blue, row, 4, mean)
    return _gray_if(tl.load(row + _GRAY_LAST), red, green, blue)


@triton.jit
def _finished(plane, row, CHANNEL: tl.constexpr, SOLARIZE: tl.constexpr, dtype: tl.constexpr):
    """Everything after the blur, for one channel."""
    if SOLARIZE:
        plane = tl.where(plane >= tl.load(row + _INVERTED_FROM), 1.0 - plane, plane)
    scale = tl.load(row + _SCALE + CHANNEL)
    return (plane * scale + tl.load(row + _SHIFT + CHANNEL)).to(dtype)


@triton.jit
def _store(view, pixel, inside, red, green, blue, COUNT: tl.constexpr):
    """Stores COUNT pixels, interleaved as red, green, blue and a fourth that is not stored.

    There is a fourth because sizes are powers of 2.
    """
    mixed = tl.reshape(tl.join(tl.join(red, blue), tl.join(green, green)), (COUNT, 4))
    channel = tl.arange(0, 4)[None, :]
    at = view + (3 * pixel[:, None] + channel)
    tl.store(at, mixed, mask=inside[:, None] & (channel < 3))


@triton.jit
def gray_sums_kernel(
    crops,
    table,
    sums,
    PIXELS: tl.constexpr,
    PARTS: tl.constexpr,
    PART: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum of the gray levels before contrast, over a part of an image with contrast."""
    number = tl.program_id(0) // PARTS
    first = tl.program_id(0) % PARTS * PART
    row = table + number * _COLUMNS
    image = crops + number.to(tl.int64) * (3 * PIXELS)
    steps = tl.load(row + _BEFORE_CONTRAST).to(tl.int32)
    gray_first = tl.load(row + _GRAY_FIRST)
    total = tl.zeros((BLOCK,), tl.float32)
    if steps >= 0:
        for start in range(0, PART, BLOCK):
            pixel = first + start + tl.arange(0, BLOCK)
            inside = pixel < PIXELS
            red, green, blue = _loaded(image, pixel, inside)
            red, green, blue = _gray_if(gray_first, red, green, blue)
            red, green, blue = _jittered(red, green, blue, row, steps, 0.0)
            total += tl.where(inside, _luma(red, green, blue), 0.0)
    tl.store(sums + tl.program_id(0), tl.sum(total, 0))


@triton.jit
def plain_kernel(
    crops,
    table,
    sums,
    views,
    batch,
    count,
    SIDE: tl.constexpr,
    PARTS: tl.constexpr,
    JITTER: tl.constexpr,
    SOLARIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """BLOCK pixels of a view without blur."""
    blocks: tl.constexpr = (SIDE * SIDE + BLOCK - 1) // BLOCK
    number = tl.program_id(0) // blocks
    row = table + number * _COLUMNS
    if tl.load(row + _WEIGHT) == 0:
        image = crops + number.to(tl.int64) * (3 * SIDE * SIDE)
        place = number % count * batch + number // count
        view = views + place.to(tl.int64) * (3 * SIDE * SIDE)
        pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
        inside = pixel < SIDE * SIDE
        column = pixel % SIDE
        mirrored = pixel + (SIDE - 1 - 2 * column)
        source = tl.where(tl.load(row + _FLIP) != 0, mirrored, pixel)
        red, green, blue = _colored(
            image, source, inside, row, sums, number, SIDE * SIDE, PARTS, JITTER
        )
        dtype: tl.constexpr = views.dtype.element_ty
        red = _finished(red, row, 0, SOLARIZE, dtype)
        green = _finished(green, row, 1, SOLARIZE, dtype)
        blue = _finished(blue, row, 2, SOLARIZE, dtype)
        _store(view, pixel, inside, red, green, blue, BLOCK)


@triton.jit
def _band(distance, exponent, weight, RADIUS: tl.constexpr):
    """Weights of a Gaussian at these distances, 0 outside its radius."""
    away = distance.to(tl.float32)
    within = (distance <= RADIUS) & (distance >= -RADIUS)
    return tl.where(within, weight * tl.exp(exponent * away * away), 0.0).to(tl.float16)


@triton.jit
def _blurred(plane, across, down, ROWS: tl.constexpr, COLS: tl.constexpr):
    tile = tl.reshape(plane.to(tl.float16), (ROWS, COLS))
    tile = tl.dot(tile, across).to(tl.float16)
    return tl.reshape(tl.dot(down, tile), (ROWS * COLS,))


@triton.jit
def blurred_kernel(
    crops,
    table,
    sums,
    views,
    batch,
    count,
    SIDE: tl.constexpr,
    PARTS: tl.constexpr,
    JITTER: tl.constexpr,
    SOLARIZE: tl.constexpr,
    RADIUS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """A tile of a view with blur; ROWS and COLS include the halo of RADIUS pixels on each side."""
    across_tiles: tl.constexpr = (SIDE + COLS - 2 * RADIUS - 1) // (COLS - 2 * RADIUS)
    down_tiles: tl.constexpr = (SIDE + ROWS - 2 * RADIUS - 1) // (ROWS - 2 * RADIUS)
    number = tl.program_id(0) // (across_tiles * down_tiles)
    row = table + number * _COLUMNS
    weight = tl.load(row + _WEIGHT)
    if weight != 0:
        image = crops + number.to(tl.int64) * (3 * SIDE * SIDE)
        place = number % count * batch + number // count
        view = views + place.to(tl.int64) * (3 * SIDE * SIDE)
        tile = tl.program_id(0) % (across_tiles * down_tiles)
        top = tile // across_tiles * (ROWS - 2 * RADIUS)
        left = tile % across_tiles * (COLS - 2 * RADIUS)
        y = tl.arange(0, ROWS * COLS) // COLS
        x = tl.arange(0, ROWS * COLS) % COLS
        from_y = tl.minimum(tl.maximum(top + y - RADIUS, 0), SIDE - 1)
        from_x = tl.minimum(tl.maximum(left + x - RADIUS, 0), SIDE - 1)
        from_x = tl.where(tl.load(row + _FLIP) != 0, SIDE - 1 - from_x, from_x)
        pixel = from_y * SIDE + from_x
        red, green, blue = _colored(
            image, pixel, None, row, sums, number, SIDE * SIDE, PARTS, JITTER
        )
        exponent = tl.load(row + _EXPONENT)
        x_in = tl.arange(0, COLS)[:, None]
        x_out = tl.arange(0, COLS)[None, :]
        across = _band(x_in - x_out - RADIUS, exponent, weight, RADIUS)
        y_out = tl.arange(0, ROWS)[:, None]
        y_in = tl.arange(0, ROWS)[None, :]
        down = _band(y_in - y_out - RADIUS, exponent, weight, RADIUS)
        dtype: tl.constexpr = views.dtype.element_ty
        # Channel by channel up to the narrow dtype: registers are few.
        red = _blurred(red, across, down, ROWS, COLS)
        red = _finished(red, row, 0, SOLARIZE, dtype)
        green = _blurred(green, across, down, ROWS, COLS)
        green = _finished(green, row, 1, SOLARIZE, dtype)
        blue = _blurred(blue, across, down, ROWS, COLS)
        blue = _finished(blue, row, 2, SOLARIZE, dtype)
        inside = (y < ROWS - 2 * RADIUS) & (x < COLS - 2 * RADIUS)
        inside = inside & (top + y < SIDE) & (left + x < SIDE)
        pixel = (top + y) * SIDE + left + x
        _store(view, pixel, inside, red, green, blue, ROWS * COLS)


def photometric_views(
    crops: Tensor,
    table: Tensor,
    dtype: torch.dtype,
    jitter: bool,
    solarize: bool,
    radius: int,
    tiles: Tiles,
) -> Tensor:
    """See `fused.photometric_views`."""
    crops, table = crops.contiguous(), table.contiguous()
    batch, count, side = crops.shape[:3]
    images, pixels = batch * count, side * side
    views = torch.empty((count, batch, side, side, 3), dtype=dtype, device=crops.device)
    part = tiles.part_of(pixels)
    parts = triton.cdiv(pixels, part)
    sums = table.new_empty((images, parts) if jitter else 0)
    operands = (crops, table, sums, views, batch, count, side, parts, jitter, solarize)
    with torch.cuda.device_of(crops):
        if jitter:
            gray_sums_kernel[(images * parts,)](
                crops,
                table,
                sums,
                pixels,
                parts,
                part,
                tiles.sums_block,
                num_warps=tiles.sums_warps,
                num_stages=1,
            )
        plain_kernel[(images * triton.cdiv(pixels, tiles.block),)](
            *operands, tiles.block, num_warps=tiles.warps, num_stages=1
        )
        if radius > 0:
            across = triton.cdiv(side, tiles.cols - 2 * radius)
            down = triton.cdiv(side, tiles.rows - 2 * radius)
            blurred_kernel[(images * across * down,)](
                *operands, radius, tiles.rows, tiles.cols, num_warps=tiles.blur_warps, num_stages=1
            )
    return views
