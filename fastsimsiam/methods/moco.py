"""MoCo v1 and v2: He et al., arXiv 1911.05722, and Chen et al., arXiv 2003.04297.

BatchNorm would tell query and key apart from all negatives: the two are the only ones that see the
statistics of this batch. The papers train on 8 GPUs, with statistics of 32 images on each, and shuffle
the keys among the GPUs. Here a device's batch is split into groups, and its keys are shuffled among
them. This holds for each device alone, so that with several no image has to travel, and groups of the
same size make the same statistics as one device with the whole batch.
"""

import math
import random
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastsimsiam.config.methods import MoCoConfig
from fastsimsiam.config.run import Config
from fastsimsiam.errors import UserError
from fastsimsiam.methods.base import Method, ParameterGroup, Progress
from fastsimsiam.methods.collapse import COLLAPSED_STD, above_chance, collapse_std, collapse_warning
from fastsimsiam.methods.losses import queue_info_nce
from fastsimsiam.methods.queue import KeyQueue
from fastsimsiam.methods.shuffle import permutation
from fastsimsiam.methods.target import TargetNetwork
from fastsimsiam.models.heads import mlp
from fastsimsiam.models.split_batch_norm import split_batch_norm


class MoCo(Method):
    """Finds the key of the other view among the keys of a queue.

    Each view goes through the networks separately: BatchNorm sees one view at a time. Keys of the same
    batch are no negatives of one another.
    """

    sync_batch_norm = False  # it would undo the groups
    num_views = 2
    compares_images = True

    shuffle_seed: Tensor

    def __init__(self, backbone: nn.Module, feature_dim: int, config: MoCoConfig) -> None:
        """Builds the head, the target network, which starts as a copy, and the queue.

        Args:
            backbone: network from images to features (B, feature_dim).
            feature_dim: number of the backbone's features.
            config: options.
        """
        super().__init__()
        self.config = config
        if config.bn_group_size:
            split_batch_norm(backbone, config.bn_group_size)
        self.backbone = backbone
        hidden = [config.hidden_dim or feature_dim] * (config.projector_layers - 1)
        self.projector = mlp(
            [feature_dim, *hidden, config.projection_dim], hidden_norm=False, hidden_bias=True
        )
        self.target = TargetNetwork(self.backbone, self.projector)
        self.queue = KeyQueue(config.queue_size, config.projection_dim)
        self.register_buffer("shuffle_seed", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(
        self, views: tuple[Tensor, ...], labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Method.forward`.

        Metrics: collapse_std of the first view's queries; contrast_accuracy, the share of queries that
        are nearer to their key than to any in the queue.
        """
        directions = [(0, 1)] if self.config.symmetric == "off" else [(0, 1), (1, 0)]
        queries = [_unit(self.projector(self.backbone(views[view]))) for view, _ in directions]
        keys = [self._keys(views[view], view) for _, view in directions]
        self.fresh_keys = torch.cat(keys[::-1])  # in the order of the views, for `after_part`
        pairs = [
            queue_info_nce(query, key, self.queue.keys, temperature=self.config.temperature)
            for query, key in zip(queries, keys, strict=True)
        ]
        losses, accuracies = (torch.stack(values) for values in zip(*pairs, strict=True))
        loss = losses.mean() if self.config.symmetric == "mean" else losses.sum()
        return loss, {
            "collapse_std": collapse_std(queries[0]),
            "contrast_accuracy": accuracies.mean(),
        }

    def _keys(self, view: Tensor, number: int) -> Tensor:
        """The target's unit vectors (B, D) of a view; they pass through BatchNorm in another order."""
        if self.config.bn_group_size == 0:
            return _unit(self.target(view))
        order = permutation(self.shuffle_seed, len(view), number)
        return _unit(self.target(view[order]))[torch.argsort(order)]

    def parameter_groups(self) -> list[ParameterGroup]:
        """All of the online network follows the schedule."""
        return [
            ParameterGroup(parameters=[*self.backbone.parameters(), *self.projector.parameters()])
        ]

    def before_step(self, at: Progress) -> None:
        """Draws the order of the keys, a function of the step alone."""
        self.shuffle_seed.fill_(random.Random(at.step).getrandbits(31))

    def after_part(self) -> None:
        """Puts the new keys into the queue, which the loss has read without them."""
        self.queue.enqueue(self.fresh_keys)

    def after_step(self) -> None:
        """Moves the target, which the authors do at the start of the next step: the same keys."""
        self.target.update(self.config.momentum)

    @classmethod
    def check_batch(cls, config: Config, images: int) -> None:
        """Refuses a batch that is not two or more groups, among which keys can be shuffled.

        Raises:
            UserError: names the options to change.
        """
        assert isinstance(config.method, MoCoConfig)
        size = config.method.bn_group_size
        if size == 0 or (images % size == 0 and images > size):
            return
        enough = max(2, -(-images // size)) * size * (config.batch_size // images)
        fitting = [n for n in range(2, min(size, images // 2) + 1) if images % n == 0]
        other = f", or --method.bn-group-size {fitting[-1]}" if fitting else ""
        raise UserError(
            f"--method.bn-group-size is {size}, but the {images} images that a device has at a time "
            f"are not two or more groups of that size: give --batch-size {enough}{other}"
        )

    @classmethod
    def batch_norm_images(cls, config: Config, images: int) -> int:
        """The size of a group."""
        assert isinstance(config.method, MoCoConfig)
        return config.method.bn_group_size or images

    @classmethod
    def warning(cls, metrics: Mapping[str, float], batch_size: int) -> str | None:
        """A collapsed network has a small spread, and finds no key again.

        The spread alone says little: without a BatchNorm in the head, fresh networks begin with a
        small one, while each image is still nearest to itself.
        """
        small = metrics.get("collapse_std", math.inf) < COLLAPSED_STD
        return collapse_warning(
            metrics,
            batch_size,
            "Raise --method.momentum towards 1, or lower --optimizer.lr or --optimizer.weight-decay.",
            confirmed=small and not cls.told_apart(metrics, batch_size),
        )

    @classmethod
    def told_apart(cls, metrics: Mapping[str, float], batch_size: int) -> bool:
        """See `Method.told_apart`; among the keys of a queue chance is next to nothing."""
        return above_chance(metrics, 0.0)


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=1)
