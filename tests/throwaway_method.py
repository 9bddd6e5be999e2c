"""A throw-away method that proves the contract: momentum encoder, key queue, labels, a frozen group.

It touches no file of the package: config, class and recipe are registered from here, as a user would.
`python tests/throwaway_method.py ...` is the command line of fastsimsiam with it.
"""

import copy
import sys
from dataclasses import dataclass, replace
from typing import ClassVar

import tiny_backbone  # noqa: F401
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from fastsimsiam.cli import main
from fastsimsiam.config.fields import require
from fastsimsiam.config.methods import MethodConfig
from fastsimsiam.config.optimizer import OptimizerConfig
from fastsimsiam.config.run import Config, KnnConfig
from fastsimsiam.methods.base import Method, ParameterGroup, Progress
from fastsimsiam.methods.collapse import collapse_std
from fastsimsiam.methods.registry import register_method
from fastsimsiam.recipes import catalogue
from fastsimsiam.recipes.base import DIGITS, Recipe


@dataclass(frozen=True, kw_only=True)
class ThrowawayConfig(MethodConfig):
    """Options of the throw-away method."""

    name: ClassVar[str] = "throwaway"

    temperature: float = 0.2
    """Temperature of the logits."""
    queue_size: int = 40
    """Keys in the queue; no multiple of the batch size."""
    frozen_epochs: float = 0.5
    """Epochs that the prototypes wait for."""

    def __post_init__(self) -> None:
        require(self.temperature > 0, "method.temperature", self.temperature, "give more than 0")


class Throwaway(Method):
    """MoCo's loss against a queue of labeled keys, and a class for each of three prototypes."""

    sync_batch_norm = False
    whole_batch = True

    def __init__(self, backbone: nn.Module, feature_dim: int, config: ThrowawayConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.projector = nn.Linear(feature_dim, 16)
        self.target_backbone = copy.deepcopy(backbone).requires_grad_(False)
        self.target_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.prototypes = nn.Linear(16, 3, bias=False)
        keys = F.normalize(torch.randn(config.queue_size, 16), dim=1)
        self.register_buffer("queue", keys)
        self.register_buffer("queue_labels", torch.full((config.queue_size,), -1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("tau", torch.zeros(()), persistent=False)

    def forward(
        self, views: tuple[Tensor, ...], labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        query = F.normalize(self.projector(self.backbone(views[0])), dim=1)
        with torch.no_grad():
            key = F.normalize(self.target_projector(self.target_backbone(views[1])), dim=1)
        self.fresh, self.fresh_labels = key, labels  # for `after_part`
        logits = torch.cat([(query * key).sum(1, keepdim=True), query @ self.queue.T], dim=1)
        logits = logits.float() / self.config.temperature
        same = F.pad(self.queue_labels[None, :] == labels[:, None], (1, 0))
        contrast = F.cross_entropy(
            logits.masked_fill(same, -1e9), torch.zeros_like(labels)
        )  # keys of the same class are no negatives
        supervised = F.cross_entropy(self.prototypes(query).float(), labels)
        return contrast + supervised, {
            "collapse_std": collapse_std(query),
            "supervised": supervised.detach(),
        }

    def parameter_groups(self) -> list[ParameterGroup]:
        encoder = [*self.backbone.parameters(), *self.projector.parameters()]
        prototypes = list(self.prototypes.parameters())
        return [
            ParameterGroup(parameters=encoder),
            ParameterGroup(
                parameters=prototypes,
                decayed=False,
                lr_factor=2.0,
                frozen_epochs=self.config.frozen_epochs,
            ),
        ]

    def before_step(self, at: Progress) -> None:
        self.tau.fill_(0.9 + 0.1 * at.step / at.total_steps)

    def after_part(self) -> None:
        keys, labels = gathered(self.fresh), gathered(self.fresh_labels)
        rows = (self.pointer + torch.arange(len(keys))) % len(self.queue)
        self.queue.index_copy_(0, rows, keys)
        self.queue_labels.index_copy_(0, rows, labels)
        self.pointer.add_(len(keys)).remainder_(len(self.queue))

    def after_step(self) -> None:
        targets = [*self.target_backbone.parameters(), *self.target_projector.parameters()]
        onlines = [*self.backbone.parameters(), *self.projector.parameters()]
        torch._foreach_mul_(targets, self.tau)
        torch._foreach_add_(targets, torch._foreach_mul(onlines, 1 - self.tau))
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))


def gathered(tensor: Tensor) -> Tensor:
    """The rows of all ranks, so that every rank has the same queue."""
    if not dist.is_initialized():
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def throwaway() -> Config:
    """The throw-away method on the images of the tests."""
    return Config(
        recipe="throwaway",
        epochs=4,
        batch_size=16,
        image_size=32,
        arch="tiny_resnet",
        method=ThrowawayConfig(),
        optimizer=OptimizerConfig(lr=0.1),
        knn=KnnConfig(every_epochs=0),
        device="cpu",
        precision="fp32",
        compile="off",
        loader="cpu",
        workers=2,
        log_every=1,
    )


register_method(ThrowawayConfig, Throwaway)

if __name__ == "__main__":
    catalogue.RECIPES["throwaway"] = Recipe(
        make=throwaway, data_set=replace(DIGITS, train_images=96, val_images=24)
    )
    sys.exit(main())
