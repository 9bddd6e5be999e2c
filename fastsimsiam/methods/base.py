"""The contract of a method: what training, evaluation and the report ask of it.

A step is, in this order: `before_step`; for each accumulated part of the batch `forward` (compiled),
the backward pass and `after_part`; the optimizer; `after_step`.

State that outlives a step, apart from BatchNorm's statistics, is written by the hooks, outside of the
compiled graph. It is a registered buffer or a parameter, so that a checkpoint holds it. A hook that
needs tensors of the batch (the keys of a queue, say) finds them where `forward` has assigned them to an
attribute: those of the latest part.

With several ranks, `forward` receives this rank's share of the batch. A loss that compares images
gathers them itself, by gather.py. Buffers must be equal on all ranks, BatchNorm's statistics excepted,
since checkpoints hold those of rank 0.

    class Example(Method):
        whole_batch = True  # its loss compares the images of a batch
        num_views = 2  # and is defined for two views of each

        def __init__(self, backbone, feature_dim, config):
            super().__init__()
            self.backbone = backbone
            self.projector = nn.Linear(feature_dim, config.projector_dim)

        def forward(self, views, labels):
            first, second = (self.projector(self.backbone(view)) for view in views)
            loss, accuracy = nt_xent(first, second, temperature=0.1)
            return loss, {"collapse_std": collapse_std(first), "contrast_accuracy": accuracy}

        def parameter_groups(self):
            return [ParameterGroup(parameters=list(self.parameters()))]
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from fastsimsiam.config.run import Config
from fastsimsiam.methods.collapse import above_chance, collapse_warning


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that the optimizer treats alike.

    Attributes:
        parameters: trained parameters.
        constant_lr: they keep the peak learning rate for the whole run, instead of following the
            schedule.
        lr_factor: multiplies their learning rate, also a constant one.
        decayed: weight decay applies to them.
        adapted: lars and larc scale their updates by a ratio of norms; other optimizers never do.
        frozen_epochs: first epochs of the run, which leave them and their momentum alone.
    """

    parameters: list[nn.Parameter]
    constant_lr: bool = False
    lr_factor: float = 1.0
    decayed: bool = True
    adapted: bool = True
    frozen_epochs: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands.

    Attributes:
        step: optimizer steps done.
        steps_per_epoch: optimizer steps of one epoch.
        total_steps: optimizer steps of the whole schedule.
    """

    step: int
    steps_per_epoch: int
    total_steps: int


class Method(nn.Module, ABC):
    """A self-supervised method around a backbone.

    It is constructed as `Method(backbone, feature_dim, config)`, after torch's generator was seeded: a
    network with fresh weights, the number of its features, and the method's config. A target network is
    a `methods.target.TargetNetwork`, called `target`.

    Attributes:
        backbone: images (B, 3, H, W) to features (B, D); what evaluation and export use: always the
            network that is trained, never a moving average of it.
        projector: features to projections, if the method has one by this name; `inspect` looks at it.
        sync_batch_norm: with several GPUs, BatchNorm layers take their statistics over all of them.
        whole_batch: the loss compares the images of a batch with one another, so that accumulating
            it over parts of a batch would be another loss; `accumulate` above 1 is refused.
        compares_images: the loss keeps different images apart, so that outputs that are close together
            and told apart are no collapse.
        needs_labels: the loss compares labels; a data set of fewer than two classes is refused.
        num_views: number of views that the loss is defined for; None: two or more.
        joint_views: all views go through the network as one batch: they are of one size.
    """

    backbone: nn.Module
    sync_batch_norm: ClassVar[bool] = True
    whole_batch: ClassVar[bool] = False
    compares_images: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    num_views: ClassVar[int | None] = None
    joint_views: ClassVar[bool] = False

    @classmethod
    def check_batch(cls, config: Config, images: int) -> None:
        """Refuses a batch that the method cannot use, before the run.

        Args:
            config: of the run, with the method's own config.
            images: per forward pass on one device.

        Raises:
            UserError: names the options to change.
        """

    @classmethod
    def batch_norm_images(cls, config: Config, images: int) -> int:
        """Number of images whose BatchNorm statistics are taken together on a device, while training.

        Args:
            config: of the run, with the method's own config.
            images: per forward pass on one device.
        """
        return images

    @classmethod
    def large_views(cls, view_sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Numbers of the views that show whole images, as opposed to the small crops of multi-crop.

        Args:
            view_sizes: side of each view in pixels.

        Returns:
            The views of the largest size, unless a method says otherwise.
        """
        largest = max(view_sizes)
        return tuple(view for view, size in enumerate(view_sizes) if size == largest)

    @abstractmethod
    def forward(
        self, views: tuple[Tensor, ...], labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the loss of a batch, or of a part of it; compiled as one graph.

        Args:
            views: one tensor (B, 3, S, S) per view of the recipe, normalized, in the dtype of the run's
                arithmetic, channels_last; `forward` runs under autocast.
            labels: (B,) int64 class numbers, for supervised methods; others leave them alone.

        Returns:
            The scalar float32 loss, and scalar metrics for the log, without gradients and with the same
            names at every step. `loss`, `epoch`, `lr`, `images_per_second` and `data_wait` are taken;
            `collapse_std` (1 healthy, 0 collapsed) is drawn and watched. `contrast_accuracy`, the share
            of images that are told from the others, is read beside it by `health` and the report: a
            network that tells images apart has not collapsed. A name that ends in `accuracy` is of a
            share from 0 to 1, and is drawn in per cent.
        """

    @abstractmethod
    def parameter_groups(self) -> list[ParameterGroup]:
        """All trained parameters, each in one group."""

    def before_step(self, at: Progress) -> None:
        """Prepares an optimizer step.

        What `forward` reads and depends on the step goes into tensors on the device, written in place:
        a new number of the host would compile the graph once more. A number that only hooks read, such
        as the momentum of a target network, stays on the host.

        Called outside of the compiled graph, without gradients; must not wait for the device.

        Args:
            at: the run before the step.
        """

    def after_part(self) -> None:
        """Follows the backward pass of a part of the batch: keys enter a queue.

        Called outside of the compiled graph, without gradients; must not wait for the device.
        """

    def after_step(self) -> None:
        """Follows an optimizer step: moving averages, normalized prototypes.

        Called outside of the compiled graph, without gradients; must not wait for the device, and
        writes tensors in place.
        """

    def certainty(self, features: Tensor) -> Tensor | None:
        """How certain the method is of each image, if it has a measure of that.

        Args:
            features: of the backbone (B, D), in eval mode, float32.

        Returns:
            (B,) float32, the larger the more certain; None for methods without.
        """
        return None

    @classmethod
    def warning(cls, metrics: Mapping[str, float], batch_size: int) -> str | None:
        """What a user should be told of the metrics, a collapse above all; None where all is well.

        Args:
            metrics: means of the loss (`loss`) and of `forward`'s metrics since the last log step.
            batch_size: images per forward pass on one device, of which metrics are computed.
        """
        return collapse_warning(metrics, batch_size)

    @classmethod
    def told_apart(cls, metrics: Mapping[str, float], batch_size: int) -> bool:
        """Whether the network tells images apart: its outputs are not equal, however close they are.

        Args:
            metrics: see `warning`; `contrast_accuracy` says it. False without it.
            batch_size: see `warning`.
        """
        return above_chance(metrics, 1.0 / batch_size)
