"""From uint8 crops and view parameters to the normalized views a method is given.

Shapes: B batch, V views of a size, S side. Order as in the official recipe: jitter, gray, blur,
solarize, flip, normalize. Nothing here is random: parameters come in as tensors.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastsimsiam.augment.blur import gaussian_blur
from fastsimsiam.augment.color import jitter, luma
from fastsimsiam.config.views import ViewSpec
from fastsimsiam.loaders.base import size_groups

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_CPU_PIECE_PIXELS = 1 << 18
"""Of a thread, at a time: what its cache holds."""


def normalize(planes: Tensor, dtype: torch.dtype) -> Tensor:
    """Subtracts ImageNet's mean and divides by its standard deviation.

    Args:
        planes: (N, 3, H, W) in [0, 1].
        dtype: of the result.

    Returns:
        (N, 3, H, W), channels_last.
    """
    # Channel by channel with plain numbers: constants made on the host would have to travel.
    channels = [
        (planes[:, channel] - mean) / std
        for channel, (mean, std) in enumerate(zip(IMAGENET_MEAN, IMAGENET_STD, strict=True))
    ]
    return torch.stack(channels, dim=1).to(dtype, memory_format=torch.channels_last)


class Photometric(nn.Module):
    """The photometric part of all views of a batch.

    Operations that no view of a recipe uses (by probability) are left out of the graph.
    """

    def __init__(
        self,
        specs: Sequence[ViewSpec],
        view_sizes: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Prepares the operations.

        Args:
            specs: one per view.
            view_sizes: side of each view's crop in pixels.
            dtype: of the views; the arithmetic is float32.
        """
        super().__init__()
        self._groups = list(size_groups(view_sizes).values())
        self._num_views = len(specs)
        self._dtype = dtype
        self._jitter = [any(specs[v].jitter > 0 for v in group) for group in self._groups]
        self._gray = [any(specs[v].grayscale > 0 for v in group) for group in self._groups]
        self._solarize = [any(specs[v].solarize > 0 for v in group) for group in self._groups]
        self._flip = [any(specs[v].flip > 0 for v in group) for group in self._groups]
        self._largest_sigma = [
            max((specs[v].blur_sigma[1] for v in group if specs[v].blur > 0), default=0.0)
            for group in self._groups
        ]

    def forward(
        self, crops: tuple[Tensor, ...], photometric: dict[str, Tensor]
    ) -> tuple[Tensor, ...]:
        """Applies the parameters.

        Args:
            crops: see `loaders.batch.Batch`.
            photometric: see `loaders.batch.Batch`.

        Returns:
            One tensor (B, 3, S, S) per view, channels_last, in the order of the views.
        """
        views: list[Tensor | None] = [None] * self._num_views
        for number, (group, members) in enumerate(zip(crops, self._groups, strict=True)):
            # Stacked, because indexing with a list copies it to the device and waits for that.
            table = {
                name: torch.stack([value[:, view] for view in members], dim=1)
                for name, value in photometric.items()
            }
            if group.device.type == "cpu" and not torch.compiler.is_compiling():
                done = self._in_pieces(group, table, number)
            else:
                done = self._group(group, table, number)
            for view, pixels in zip(members, done, strict=True):
                views[view] = pixels
        assert all(view is not None for view in views)
        return tuple(view for view in views if view is not None)

    def compile_alone(self) -> None:
        """Compiles this part by itself, where the step around it is not compiled."""
        self._group = torch.compile(  # type: ignore[method-assign]
            self._group, fullgraph=True, dynamic=False
        )

    def _in_pieces(self, crops: Tensor, table: dict[str, Tensor], group: int) -> list[Tensor]:
        """A CPU goes over pieces that fit its cache: more than twice as fast."""
        batch, count, side = crops.shape[:3]
        most = _CPU_PIECE_PIXELS * torch.get_num_threads() // (count * side * side)
        # Of one size, so that there is one shape to compile.
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
            for view, done in zip(views, self._group(crops[rows], rows_table, group), strict=True):
                view[rows] = done
        return views

    def _group(self, crops: Tensor, table: dict[str, Tensor], group: int) -> list[Tensor]:
        """Crops (B, V, S, S, 3) and parameters (B, V, ...) to V views (B, 3, S, S)."""
        flat = {name: value.flatten(0, 1) for name, value in table.items()}
        batch, count, side = crops.shape[:3]
        done = self._transform(crops.flatten(0, 1), flat, group).view(batch, count, 3, side, side)
        return [normalize(done[:, position], self._dtype) for position in range(count)]

    def _transform(self, crops: Tensor, table: dict[str, Tensor], group: int) -> Tensor:
        """(N, S, S, 3) uint8 to (N, 3, S, S) float32 in [0, 1]."""
        planes = crops.permute(3, 0, 1, 2)
        if self._flip[group]:  # the same as at the end, of bytes instead of floats
            planes = torch.where(table["flip"][:, None, None], planes.flip(3), planes)
        if crops.device.type == "cpu" and torch.compiler.is_compiling():
            # Forces a compiler to write the planes down: loops over every third byte are not
            # vectorized along a row.
            planes = planes.contiguous()
            planes = planes.as_strided(planes.shape, planes.stride())
        image = planes.float() / 255.0
        rgb = (image[0], image[1], image[2])
        if self._jitter[group]:
            rgb = jitter(
                rgb,
                brightness=table["brightness"],
                contrast=table["contrast"],
                saturation=table["saturation"],
                hue=table["hue"],
                order=table["order"],
            )
        if self._gray[group]:
            gray, chosen = luma(rgb), table["grayscale"][:, None, None]
            rgb = (
                torch.where(chosen, gray, rgb[0]),
                torch.where(chosen, gray, rgb[1]),
                torch.where(chosen, gray, rgb[2]),
            )
        planes = torch.stack(rgb, dim=1)
        if self._largest_sigma[group] > 0:
            planes = gaussian_blur(planes, table["blur_sigma"], self._largest_sigma[group])
        if self._solarize[group]:
            bright = planes >= 128 / 255
            planes = torch.where(
                table["solarize"][:, None, None, None] & bright, 1.0 - planes, planes
            )
        return planes
