"""From uint8 crops and view parameters to the normalized views that a method gets.

Shapes: B batch, V views of one size, S crop side. The operations and their order are those of the
official recipe: jitter, grayscale, blur, solarize, flip, normalize; or grayscale before jitter, where a
view's spec says so. Nothing here is random: parameters are tensors.
"""

import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastsimsiam.augment import fused as fused_op
from fastsimsiam.augment.blur import gaussian_blur
from fastsimsiam.augment.color import Planes, jitter, luma
from fastsimsiam.augment.table import coefficients, fits, radius_of
from fastsimsiam.config.views import IMAGENET_PIXELS, NormalizeConfig, ViewSpec
from fastsimsiam.loaders.base import size_groups

_CPU_PIECE_PIXELS = 1 << 18
"""Pixels per thread that are processed at a time: as many as fit the cache of a core."""


def normalize(planes: Tensor, constants: NormalizeConfig, dtype: torch.dtype) -> Tensor:
    """Subtracts the mean of each channel and divides by its standard deviation.

    Args:
        planes: (N, 3, H, W) in [0, 1].
        constants: means and standard deviations.
        dtype: dtype of the result.

    Returns:
        (N, 3, H, W), channels_last.
    """
    # Per channel with Python numbers: a tensor of constants would be copied from the host.
    channels = [
        (planes[:, channel] - mean) / std
        for channel, (mean, std) in enumerate(zip(constants.mean, constants.std, strict=True))
    ]
    return torch.stack(channels, dim=1).to(dtype, memory_format=torch.channels_last)


class Photometric(nn.Module):
    """The photometric part of all views of a batch.

    Operations whose probability is 0 in all views of a size are left out of the graph.
    """

    def __init__(
        self,
        specs: Sequence[ViewSpec],
        view_sizes: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
        *,
        normalize: NormalizeConfig = IMAGENET_PIXELS,
        fused: bool = False,
    ) -> None:
        """Prepares the operations.

        Args:
            specs: one per view.
            view_sizes: side of each view's crop in pixels.
            dtype: dtype of the views; the arithmetic is float32.
            normalize: constants of the normalization.
            fused: on a GPU, use the Triton kernels of `augment.kernels`, whose blur differs by up to a
                fifth of a gray level. A blur too wide for their tiles is computed as without them.
        """
        super().__init__()
        self._fused = fused
        # The kernels run on a CPU in tests only.
        self._fused_devices = (
            ("cuda", "cpu") if os.environ.get("TRITON_INTERPRET") == "1" else ("cuda",)
        )
        self._groups = list(size_groups(view_sizes).values())
        self._num_views = len(specs)
        self._dtype = dtype
        self._normalize = normalize
        self._jitter = [any(specs[v].jitter > 0 for v in group) for group in self._groups]
        self._gray_first = [
            tuple(specs[v].grayscale > 0 and specs[v].grayscale_first for v in group)
            for group in self._groups
        ]
        self._gray_last = [
            tuple(specs[v].grayscale > 0 and not specs[v].grayscale_first for v in group)
            for group in self._groups
        ]
        self._solarize = [any(specs[v].solarize > 0 for v in group) for group in self._groups]
        self._flip = [any(specs[v].flip > 0 for v in group) for group in self._groups]
        self._largest_sigma = [
            max((specs[v].blur_sigma[1] for v in group if specs[v].blur > 0), default=0.0)
            for group in self._groups
        ]

    def forward(
        self, crops: tuple[Tensor, ...], photometric: dict[str, Tensor]
    ) -> tuple[Tensor, ...]:
        """Applies the view parameters and normalizes.

        Args:
            crops: see `loaders.base.Batch`.
            photometric: see `loaders.base.Batch`.

        Returns:
            One tensor (B, 3, S, S) per view, channels_last, in the order of the views.
        """
        views: list[Tensor | None] = [None] * self._num_views
        for number, (group, members) in enumerate(zip(crops, self._groups, strict=True)):
            # Stacked, because indexing with a list copies the list to the device and waits.
            table = {
                name: torch.stack([value[:, view] for view in members], dim=1)
                for name, value in photometric.items()
            }
            if group.device.type == "cpu" and not torch.compiler.is_compiling():
                group_views = self._in_pieces(group, table, number)
            else:
                group_views = self._group(group, table, number)
            for view, pixels in zip(members, group_views, strict=True):
                views[view] = pixels
        assert all(view is not None for view in views)
        return tuple(view for view in views if view is not None)

    def compile_alone(self) -> None:
        """Compiles this module, for a step that is not compiled as a whole."""
        self._group = torch.compile(  # type: ignore[method-assign]
            self._group, fullgraph=True, dynamic=False
        )

    def _in_pieces(self, crops: Tensor, table: dict[str, Tensor], group: int) -> list[Tensor]:
        """As `_group`, in pieces that fit a CPU's cache: more than twice as fast."""
        batch, count, side = crops.shape[:3]
        most = _CPU_PIECE_PIXELS * torch.get_num_threads() // (count * side * side)
        # A divisor of the batch, so that all pieces have one shape and one compiled graph.
        piece = next(size for size in range(max(1, min(most, batch)), 0, -1) if batch % size == 0)
        views = [
            torch.empty(
                (batch, 3, side, side), dtype=self._dtype, memory_format=torch.channels_last
            )
            for _ in range(count)
        ]
        for first in range(0, batch, piece):
            rows = slice(first, first + piece)
            rows_table = {name: value[rows] for name, value in table.items()}
            piece_views = self._group(crops[rows], rows_table, group)
            for view, pixels in zip(views, piece_views, strict=True):
                view[rows] = pixels
        return views

    def _group(self, crops: Tensor, table: dict[str, Tensor], group: int) -> list[Tensor]:
        """Crops (B, V, S, S, 3) and parameters (B, V, ...) to V views (B, 3, S, S)."""
        flat = {name: value.flatten(0, 1) for name, value in table.items()}
        radius = radius_of(self._largest_sigma[group])
        if self._fused and crops.device.type in self._fused_devices and fits(radius):
            return self._by_kernels(crops, flat, group, radius)
        batch, count, side = crops.shape[:3]
        planes = self._transform(crops.flatten(0, 1), flat, group).view(batch, count, 3, side, side)
        return [
            normalize(planes[:, position], self._normalize, self._dtype)
            for position in range(count)
        ]

    def _by_kernels(
        self, crops: Tensor, table: dict[str, Tensor], group: int, radius: int
    ) -> list[Tensor]:
        """As the rest of `_group`, in one operator."""
        views = fused_op.photometric_views(
            crops,
            coefficients(
                table,
                _drawn_in(table["grayscale"], self._gray_first[group]),
                _drawn_in(table["grayscale"], self._gray_last[group]),
                self._normalize,
                flip=self._flip[group],
                radius=radius,
            ),
            self._dtype,
            self._jitter[group],
            self._solarize[group],
            radius,
        )
        return [view.permute(0, 3, 1, 2) for view in views.unbind(0)]

    def _transform(self, crops: Tensor, table: dict[str, Tensor], group: int) -> Tensor:
        """(N, S, S, 3) uint8 to (N, 3, S, S) float32 in [0, 1]."""
        planes = crops.permute(3, 0, 1, 2)
        if self._flip[
            group
        ]:  # first, unlike the recipe: the result is the same, and bytes are cheaper
            planes = torch.where(table["flip"][:, None, None], planes.flip(3), planes)
        if crops.device.type == "cpu" and torch.compiler.is_compiling():
            # Forces Inductor to store the planes: it does not vectorize loops over every third byte.
            planes = planes.contiguous()
            planes = planes.as_strided(planes.shape, planes.stride())
        image = planes.float() / 255.0
        rgb = (image[0], image[1], image[2])
        rgb = _grayscale(rgb, table["grayscale"], self._gray_first[group])
        if self._jitter[group]:
            rgb = jitter(
                rgb,
                brightness=table["brightness"],
                contrast=table["contrast"],
                saturation=table["saturation"],
                hue=table["hue"],
                order=table["order"],
            )
        rgb = _grayscale(rgb, table["grayscale"], self._gray_last[group])
        planes = torch.stack(rgb, dim=1)
        if self._largest_sigma[group] > 0:
            planes = gaussian_blur(planes, table["blur_sigma"], self._largest_sigma[group])
        if self._solarize[group]:
            bright = planes >= 128 / 255
            planes = torch.where(
                table["solarize"][:, None, None, None] & bright, 1.0 - planes, planes
            )
        return planes


def _grayscale(rgb: Planes, drawn: Tensor, views: tuple[bool, ...]) -> Planes:
    """Removes the color of the images that are drawn, in some views.

    Args:
        rgb: planes (N, H, W), N = B V.
        drawn: (N,) bool.
        views: V of them: in which views it is done here.
    """
    here = _drawn_in(drawn, views)
    if here is None:
        return rgb
    gray, grayscale = luma(rgb), here[:, None, None]
    return (
        torch.where(grayscale, gray, rgb[0]),
        torch.where(grayscale, gray, rgb[1]),
        torch.where(grayscale, gray, rgb[2]),
    )


def _drawn_in(drawn: Tensor, views: tuple[bool, ...]) -> Tensor | None:
    """`drawn` (N,) in some of the V views, False in others; None: in no view."""
    if not any(views):
        return None
    if all(views):
        return drawn
    # Stacked: a mask of constants would be copied from the host.
    columns = drawn.view(-1, len(views)).unbind(1)
    here = [
        column if done else torch.zeros_like(column)
        for column, done in zip(columns, views, strict=True)
    ]
    return torch.stack(here, dim=1).flatten()
