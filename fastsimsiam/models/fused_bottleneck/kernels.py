"""1x1 convolutions as matrix products with BatchNorm before and after them, as Triton kernels.

A map in channels_last is a matrix of pixels (rows) and channels. A program computes tiles of the
result: pixels by output channels. Its operands are normalized while they are read, and what BatchNorm
needs of the result is computed from the accumulators before they are written. Channels are multiples of
the tiles' sides (`tiles.fitted`); pixels are not.
"""

import triton
import triton.language as tl


@triton.jit
def _product(
    total,
    left,
    scale,
    shift,
    weight,
    row,
    inside,
    column,
    channels: tl.constexpr,
    along_channel: tl.constexpr,
    along_column: tl.constexpr,
    NORM: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds the product of rows of a map, normalized if NORM, with columns of a weight matrix."""
    for start in range(0, channels, DEPTH):
        channel = start + tl.arange(0, DEPTH)
        at = left + row[:, None] * channels + channel[None, :]
        value = tl.load(at, mask=inside[:, None], other=0)
        if NORM:
            factor, summand = tl.load(scale + channel), tl.load(shift + channel)
            normal = value.to(tl.float32) * factor[None, :] + summand[None, :]
            value = tl.maximum(normal, 0).to(value.dtype)
        at = weight + channel[:, None] * along_channel + column[None, :] * along_column
        total = tl.dot(value, tl.load(at), total, input_precision=PRECISION)
    return total


@triton.jit
def conv_moments_kernel(
    x,
    weight,
    y,
    means,
    squares,
    rows,
    channels: tl.constexpr,
    columns: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The product y = x weight^T, and the moments of y's columns in every ROWS rows."""
    groups: tl.constexpr = columns // COLUMNS
    # Neighboring programs read the same rows.
    part = tl.program_id(0) // groups
    column = tl.program_id(0) % groups * COLUMNS + tl.arange(0, COLUMNS)
    first = part.to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)
    inside = row < rows - first
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    total = _product(
        total,
        x + first * channels,
        None,
        None,
        weight,
        row,
        inside,
        column,
        channels,
        1,
        channels,
        False,
        DEPTH,
        PRECISION,
    )
    written = total.to(y.dtype.element_ty)
    at = y + first * columns + row[:, None] * columns + column[None, :]
    tl.store(at, written, mask=inside[:, None])
    value = written.to(tl.float32)  # rows beyond the last are 0
    count = tl.minimum(rows - part * ROWS, ROWS).to(tl.float32)
    mean = tl.sum(value, 0) / count
    difference = tl.where(inside[:, None], value - mean[None, :], 0)
    tl.store(means + part * columns + column, mean)
    tl.store(squares + part * columns + column, tl.sum(difference * difference, 0))


@triton.jit
def join_kernel(
    x,
    scale,
    shift,
    weight,
    out_scale,
    out_shift,
    second,
    second_weight,
    summand,
    mask,
    y,
    rows,
    channels: tl.constexpr,
    columns: tl.constexpr,
    along_channel: tl.constexpr,
    along_column: tl.constexpr,
    second_channels: tl.constexpr,
    FORWARD: tl.constexpr,
    SHIFT: tl.constexpr,
    SECOND: tl.constexpr,
    ADD: tl.constexpr,
    MASK: tl.constexpr,
    EARLY: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    SECOND_DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Where a residual branch ends, forward; and where it begins, backward.

    FORWARD: y = relu((relu(x scale + shift) weight) out_scale + out_shift + r), r being the summand if
    ADD, second second_weight^T if SECOND. Otherwise y = x weight, plus out_shift if SHIFT, plus the
    summand if ADD, and 0 where the mask is not positive if MASK.
    """
    groups: tl.constexpr = columns // COLUMNS
    first = (tl.program_id(0) // groups).to(tl.int64) * ROWS
    column = tl.program_id(0) % groups * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.arange(0, ROWS)
    inside = row < rows - first
    there = first * columns
    at = row[:, None] * columns + column[None, :]
    if EARLY:  # before the product, which then hides the time they take
        if ADD:
            added = tl.load(summand + there + at, mask=inside[:, None], other=0)
        if MASK:
            masked = tl.load(mask + there + at, mask=inside[:, None], other=0)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    total = _product(
        total,
        x + first * channels,
        scale,
        shift,
        weight,
        row,
        inside,
        column,
        channels,
        along_channel,
        along_column,
        FORWARD,
        DEPTH,
        PRECISION,
    )
    if FORWARD:
        total *= tl.load(out_scale + column)[None, :]
    if SHIFT:
        total += tl.load(out_shift + column)[None, :]
    if SECOND:
        total = _product(
            total,
            second + first * second_channels,
            None,
            None,
            second_weight,
            row,
            inside,
            column,
            second_channels,
            1,
            second_channels,
            False,
            SECOND_DEPTH,
            PRECISION,
        )
    if ADD:
        if not EARLY:
            added = tl.load(summand + there + at, mask=inside[:, None], other=0)
        total += added.to(tl.float32)
    if FORWARD:
        total = tl.maximum(total, 0)
    if MASK:
        if not EARLY:
            masked = tl.load(mask + there + at, mask=inside[:, None], other=0)
        total = tl.where(masked > 0, total, 0)
    tl.store(y + there + at, total.to(y.dtype.element_ty), mask=inside[:, None])


@triton.jit
def masked_gradient_kernel(
    gradient,
    weight,
    x,
    scale,
    shift,
    mean,
    matrix,
    offset,
    y,
    sums,
    products,
    rows,
    channels: tl.constexpr,
    columns: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    INNER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The sum y = gradient weight + a matrix + offset where a = relu(x scale + shift) is positive.

    And the sums of y's columns and of their products with x - mean in every ROWS rows.
    """
    groups: tl.constexpr = columns // COLUMNS
    part = tl.program_id(0) // groups
    column = tl.program_id(0) % groups * COLUMNS + tl.arange(0, COLUMNS)
    first = part.to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)
    inside = row < rows - first
    x += first * columns
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    total = _product(
        total,
        gradient + first * channels,
        None,
        None,
        weight,
        row,
        inside,
        column,
        channels,
        columns,
        1,
        False,
        DEPTH,
        PRECISION,
    )
    total = _product(
        total,
        x,
        scale,
        shift,
        matrix,
        row,
        inside,
        column,
        columns,
        columns,
        1,
        True,
        INNER,
        PRECISION,
    )
    at = row[:, None] * columns + column[None, :]
    value = tl.load(x + at, mask=inside[:, None], other=0).to(tl.float32)
    normal = value * tl.load(scale + column)[None, :] + tl.load(shift + column)[None, :]
    let_through = (normal > 0) & inside[:, None]
    total = tl.where(let_through, total + tl.load(offset + column)[None, :], 0)
    written = total.to(y.dtype.element_ty)
    tl.store(y + first * columns + at, written, mask=inside[:, None])
    total = written.to(tl.float32)
    tl.store(sums + part * columns + column, tl.sum(total, 0))
    total *= value - tl.load(mean + column)[None, :]
    tl.store(products + part * columns + column, tl.sum(total, 0))


@triton.jit
def products_kernel(
    left,
    right,
    scale,
    shift,
    products,
    sums,
    rows,
    rows_per_part,
    left_channels: tl.constexpr,
    right_channels: tl.constexpr,
    NORM_LEFT: tl.constexpr,
    NORM_RIGHT: tl.constexpr,
    SUM: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """left^T right in a part of the rows, and the sums of left's columns if SUM.

    An operand is relu(x scale + shift) where it is to be normalized.
    """
    left_groups: tl.constexpr = left_channels // LEFT
    groups: tl.constexpr = left_groups * (right_channels // RIGHT)
    part = tl.program_id(0) // groups
    group = tl.program_id(0) % groups
    left_channel = group % left_groups * LEFT + tl.arange(0, LEFT)
    right_channel = group // left_groups * RIGHT + tl.arange(0, RIGHT)
    first = part * rows_per_part
    count = tl.minimum(rows - first, rows_per_part)
    left += first.to(tl.int64) * left_channels
    right += first.to(tl.int64) * right_channels
    total = tl.zeros((LEFT, RIGHT), tl.float32)
    if NORM_LEFT:
        left_factor, left_summand = tl.load(scale + left_channel), tl.load(shift + left_channel)
    if NORM_RIGHT:
        right_factor, right_summand = tl.load(scale + right_channel), tl.load(shift + right_channel)
    if SUM:  # a column of ones: the tensor cores sum, and threads exchange nothing
        summed = tl.zeros((LEFT, 16), tl.float32)
        ones = tl.full((DEPTH, 16), 1, left.dtype.element_ty)
    for start in range(0, count, DEPTH):
        row = start + tl.arange(0, DEPTH)
        inside = (row < count)[:, None]
        at = left + row[:, None] * left_channels + left_channel[None, :]
        a = tl.load(at, mask=inside, other=0)
        at = right + row[:, None] * right_channels + right_channel[None, :]
        b = tl.load(at, mask=inside, other=0)
        if NORM_LEFT:
            normal = a.to(tl.float32) * left_factor[None, :] + left_summand[None, :]
            a = tl.where(inside, tl.maximum(normal, 0), 0).to(a.dtype)
        if NORM_RIGHT:  # of rows beyond the last, the left operand is 0
            normal = b.to(tl.float32) * right_factor[None, :] + right_summand[None, :]
            b = tl.maximum(normal, 0).to(b.dtype)
        turned = tl.trans(a)
        total = tl.dot(turned, b, total, input_precision=PRECISION)
        if SUM:
            summed = tl.dot(turned, ones, summed, input_precision=PRECISION)
    at = left_channel[:, None] * right_channels + right_channel[None, :]
    tl.store(products + part.to(tl.int64) * left_channels * right_channels + at, total)
    if SUM:  # noqa: SIM102 (this condition is the compiler's)
        if group < left_groups:
            # All sixteen columns are the same.
            value = tl.sum(summed, 1) * 0.0625
            tl.store(sums + part * left_channels + left_channel, value)
