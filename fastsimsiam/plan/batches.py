"""The batches of an epoch: which samples, in which order, with which view parameters.

Shapes: B batch, V views, N samples of the data set. A loader gets a plan and adds the pixels.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fastsimsiam.config.views import Interpolation, ViewSpec, view_sizes
from fastsimsiam.errors import UserError
from fastsimsiam.plan.counter_rng import hash_words
from fastsimsiam.plan.order import BlockOrder, order_at
from fastsimsiam.plan.views import ViewTable, center_boxes, draw_views, without_photometric

_REPLACEMENT_STREAM = 3


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """One batch without its pixels.

    Attributes:
        epoch: number of the epoch.
        index: (B,) int64 sample indices.
        label: (B,) int64 class numbers.
        views: (B, V) view parameters.
    """

    epoch: int
    index: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    views: ViewTable

    def row(self, row: int) -> "BatchPlan":
        """A batch of one row; a copy."""
        return BatchPlan(
            epoch=self.epoch,
            index=self.index[row : row + 1].copy(),
            label=self.label[row : row + 1].copy(),
            views=self.views.row(row),
        )

    @staticmethod
    def concatenate(batches: "Sequence[BatchPlan]") -> "BatchPlan":
        """One batch of all rows of `batches`, in order."""
        return BatchPlan(
            epoch=batches[0].epoch,
            index=np.concatenate([batch.index for batch in batches]),
            label=np.concatenate([batch.label for batch in batches]),
            views=ViewTable.concatenate([batch.views for batch in batches]),
        )


class Plan(Protocol):
    """The batches of a run, as loaders see them."""

    @property
    def num_batches(self) -> int:
        """Batches in an epoch, on this rank."""

    @property
    def view_sizes(self) -> tuple[int, ...]:
        """Side of each view's square crop, in pixels."""

    @property
    def interpolations(self) -> tuple[Interpolation, ...]:
        """Filter by which each view's crop is resampled."""

    @property
    def grayscale_first(self) -> tuple[bool, ...]:
        """Whether grayscale comes before color jitter, for each view."""

    def index(self, epoch: int, step: int) -> npt.NDArray[np.int64]:
        """(B,) sample indices of batch `step` of an epoch."""

    def batch(self, epoch: int, step: int) -> BatchPlan:
        """Batch `step` of an epoch; a new copy on each call, which the loader may change."""

    def replacement(self, epoch: int, index: int, attempt: int) -> BatchPlan:
        """A batch of one sample that replaces the unreadable sample `index` of the epoch."""


@dataclass(frozen=True, kw_only=True)
class _SamplePool(ABC):
    """The samples of a plan.

    Attributes:
        label: (N,) class numbers.
        sizes: (N, 2) height and width in pixels.
        seed: of whatever is drawn.
        only: numbers of the samples that are used, also in place of broken ones; None: all.
    """

    label: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]
    seed: int
    only: npt.NDArray[np.int64] | None = None

    @property
    def num_samples(self) -> int:
        """Number of samples that are used."""
        return len(self.label if self.only is None else self.only)

    def samples(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The indices of samples that are used, by their number among those."""
        return numbers if self.only is None else self.only[numbers]

    @abstractmethod
    def table(self, epoch: int, index: npt.NDArray[np.int64]) -> ViewTable:
        """The views of the samples `index` (B,)."""

    def rows(self, epoch: int, index: npt.NDArray[np.int64]) -> BatchPlan:
        return BatchPlan(
            epoch=epoch, index=index.copy(), label=self.label[index], views=self.table(epoch, index)
        )

    def replacement(self, epoch: int, index: int, attempt: int) -> BatchPlan:
        """A sample drawn by a hash, so the same on any rank and with any number of threads."""
        number = self.drawn(epoch, index, attempt)
        return self.rows(epoch, self.samples(np.array([number])))

    def drawn(self, epoch: int, index: int, attempt: int) -> int:
        """The number of the replacement among the samples that are used."""
        return hash_words(_REPLACEMENT_STREAM, self.seed, epoch, index, attempt) % self.num_samples


def require_a_batch(images: int, batch_size: int) -> None:
    """Checks that a data set has at least one batch.

    Raises:
        UserError: `images` is less than `batch_size`.
    """
    if images < batch_size:
        raise UserError(
            f"the data set has {images} image{'s' if images != 1 else ''}, fewer than one batch of "
            f"{batch_size}: lower --batch-size"
        )


@dataclass(frozen=True, kw_only=True)
class TrainPlan(_SamplePool):
    """Shuffled batches of random views; the last, incomplete batch of an epoch is dropped.

    Attributes:
        specs: one per view.
        image_size: default crop side in pixels, for specs without a size.
        batch_size: samples per batch and rank.
        rank, world_size: number of this process, and of processes. The batches of all ranks are
            consecutive pieces of the epoch's order, so the samples of a step depend on
            `batch_size * world_size` only.
        round_to: divisor of `num_batches`: the number of batches accumulated in a step.
        blocks: order by blocks of samples that lie together, of all samples; None: a full shuffle.
    """

    specs: Sequence[ViewSpec]
    image_size: int
    batch_size: int
    rank: int = 0
    world_size: int = 1
    round_to: int = 1
    blocks: BlockOrder | None = None

    def __post_init__(self) -> None:
        assert self.blocks is None or self.only is None
        require_a_batch(self.num_samples, self.batch_size * self.world_size * self.round_to)

    @property
    def num_batches(self) -> int:
        """Batches in an epoch, on this rank."""
        step_size = self.batch_size * self.world_size * self.round_to
        return self.num_samples // step_size * self.round_to

    @property
    def view_sizes(self) -> tuple[int, ...]:
        """Side of each view's square crop, in pixels."""
        return view_sizes(self.specs, self.image_size)

    @property
    def interpolations(self) -> tuple[Interpolation, ...]:
        """Filter by which each view's crop is resampled."""
        return tuple(spec.interpolation for spec in self.specs)

    @property
    def grayscale_first(self) -> tuple[bool, ...]:
        """Whether grayscale comes before color jitter, for each view."""
        return tuple(spec.grayscale_first for spec in self.specs)

    def table(self, epoch: int, index: npt.NDArray[np.int64]) -> ViewTable:
        """Random views of the samples `index` (B,), (B, V)."""
        return draw_views(
            self.specs, seed=self.seed, epoch=epoch, index=index, sizes=self.sizes[index]
        )

    def index(self, epoch: int, step: int) -> npt.NDArray[np.int64]:
        """(B,) sample indices of batch `step` of an epoch, on this rank."""
        assert 0 <= step < self.num_batches
        first = (step * self.world_size + self.rank) * self.batch_size
        positions = np.arange(first, first + self.batch_size)
        if self.blocks is not None:
            return self.blocks.at(epoch, positions)
        return self.samples(order_at(positions, self.num_samples, self.seed, epoch))

    def batch(self, epoch: int, step: int) -> BatchPlan:
        """Batch `step` of an epoch, on this rank."""
        return self.rows(epoch, self.index(epoch, step))


@dataclass(frozen=True, kw_only=True)
class CenterPlan(_SamplePool):
    """Every sample once, in storage order, as one centered crop: for evaluation.

    Attributes:
        image_size: side of the crop in pixels.
        batch_size: samples per batch; the last batch may be smaller.
        fraction: side of the box, relative to the shorter side of the image.
    """

    image_size: int
    batch_size: int
    fraction: float
    seed: int = 0

    @property
    def num_batches(self) -> int:
        """Batches in an epoch."""
        return -(-self.num_samples // self.batch_size)

    @property
    def view_sizes(self) -> tuple[int, ...]:
        """Side of the one view's crop, in pixels."""
        return (self.image_size,)

    @property
    def interpolations(self) -> tuple[Interpolation, ...]:
        """The filter of the one view: always bilinear, as in torchvision's evaluation."""
        return ("bilinear",)

    @property
    def grayscale_first(self) -> tuple[bool, ...]:
        """No color is changed."""
        return (False,)

    def table(self, epoch: int, index: npt.NDArray[np.int64]) -> ViewTable:
        """Centered views of the samples `index` (B,), (B, 1)."""
        del epoch
        return without_photometric(center_boxes(self.sizes[index], self.fraction)[:, None, :])

    def index(self, epoch: int, step: int) -> npt.NDArray[np.int64]:
        """(B,) sample indices of batch `step`, the same in every epoch."""
        del epoch
        first = step * self.batch_size
        return self.samples(np.arange(first, min(first + self.batch_size, self.num_samples)))

    def batch(self, epoch: int, step: int) -> BatchPlan:
        """Batch `step`, the same in every epoch."""
        return self.rows(epoch, self.index(epoch, step))

    def replacement(self, epoch: int, index: int, attempt: int) -> BatchPlan:
        """A sample with a readable header, if there is one: evaluation drops it again."""
        drawn = self.drawn(epoch, index, attempt)
        for number in range(drawn, drawn + self.num_samples):
            sample = self.samples(np.array([number % self.num_samples]))
            if self.sizes[sample[0], 0]:
                return self.rows(epoch, sample)
        return self.rows(epoch, self.samples(np.array([drawn])))
