"""Linear evaluation of a frozen backbone. Shapes: B batch, D features, C classes.

The published protocol (arXiv 2011.10566, appendix A, and its code release): a linear layer on the
features of random crops, trained by LARS for 90 epochs; top-1 of the last epoch.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastsimsiam.augment.photometric import Photometric
from fastsimsiam.config.evaluation import LinearConfig
from fastsimsiam.config.views import NormalizeConfig, ViewSpec
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.features import features_of, intact_batches
from fastsimsiam.evaluate.finite import require_finite_features
from fastsimsiam.loaders.base import Loader
from fastsimsiam.optim.lars import Lars
from fastsimsiam.plan.batches import TrainPlan
from fastsimsiam.plan.order import epoch_order

TRAINING_VIEW = ViewSpec(area=(0.08, 1.0), jitter=0.0, grayscale=0.0, blur=0.0)
"""torchvision's RandomResizedCrop, and a flip."""
_CHUNK = 256
"""Images that go through the backbone at once."""


@dataclass(kw_only=True)
class LinearState:
    """State of a linear evaluation between two epochs.

    Attributes:
        layer: linear classifier, features to logits.
        optimizer: optimizer of the layer.
        epoch: number of epochs done.
        losses: mean training loss of each epoch.
    """

    layer: nn.Linear
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    losses: list[float] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and plain values, for a file."""
        return {
            "layer": self.layer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "losses": self.losses,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the result of `state_dict`."""
        self.layer.load_state_dict(state["layer"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.losses = state["epoch"], list(state["losses"])


def new_state(
    feature_dim: int, num_classes: int, config: LinearConfig, device: torch.device
) -> LinearState:
    """A new layer and its optimizer: weights of standard deviation 0.01, biases zero."""
    torch.manual_seed(config.seed)
    layer = nn.Linear(feature_dim, num_classes)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    layer = layer.to(device)
    kind = partial(Lars, form="larc") if config.optimizer == "lars" else torch.optim.SGD
    optimizer = kind(
        layer.parameters(),
        lr=peak_lr(config),
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    return LinearState(layer=layer, optimizer=optimizer)


def peak_lr(config: LinearConfig) -> float:
    """The largest learning rate of the schedule, by the linear scaling rule."""
    return config.lr * config.batch_size / 256


def lr_of_epoch(config: LinearConfig, epoch: int) -> float:
    """Learning rate of an epoch: half a cosine, evaluated once per epoch."""
    return peak_lr(config) * 0.5 * (1 + math.cos(math.pi * epoch / config.epochs))


Features = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
"""Function of the epoch that yields features (B, D) in float32 and labels (B,) per batch."""


def train(
    state: LinearState,
    features: Features,
    config: LinearConfig,
    after_epoch: Callable[[LinearState], None] = lambda state: None,
) -> None:
    """Trains the layer to the end of the last epoch.

    Args:
        state: new or restored state; changed in place.
        features: training batches of an epoch.
        config: options of the training.
        after_epoch: called with the state after each epoch.

    Raises:
        UserError: the loss is not finite.
    """
    while state.epoch < config.epochs:
        for group in state.optimizer.param_groups:
            group["lr"] = lr_of_epoch(config, state.epoch)
        total, batches = torch.zeros((), device=state.layer.weight.device), 0
        for h, label in features(state.epoch):
            loss = F.cross_entropy(state.layer(h), label)
            state.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            state.optimizer.step()
            total += loss.detach()
            batches += 1
        mean = (total / batches).item()
        if not math.isfinite(mean):
            raise UserError(f"the loss is not finite in epoch {state.epoch + 1}: lower --lr")
        state.epoch += 1
        state.losses.append(mean)
        after_epoch(state)


def accuracy(layer: nn.Linear, batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Top-1 and top-5 accuracy in percent; top-5 is 100 with five classes or fewer."""
    hits: list[Tensor] = []
    images = 0
    with torch.no_grad():
        for h, label in batches:
            best = layer(h).topk(min(5, layer.out_features), dim=1).indices
            hit = best == label[:, None]
            hits.append(torch.stack([hit[:, 0].sum(), hit.any(dim=1).sum()]))
            images += len(label)
    top1, top5 = (100.0 * torch.stack(hits).sum(dim=0) / images).tolist()
    return top1, top5


def random_crop_features(
    backbone: nn.Module,
    loader: Loader,
    plan: TrainPlan,
    *,
    constants: NormalizeConfig,
    device: torch.device,
    dtype: torch.dtype,
    source: object = "the network",
) -> Features:
    """Features of random crops, which differ from epoch to epoch; broken images are left out.

    Args:
        backbone: frozen backbone in eval mode, on the device.
        loader: loader of the training images.
        plan: plan of one view per image, `TRAINING_VIEW`.
        constants: how the images of the backbone's training were normalized.
        device: device of the backbone.
        dtype: data type of its arithmetic.
        source: what messages call the weights.
    """
    photometric = Photometric(plan.specs, plan.view_sizes, dtype, normalize=constants)

    def features(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for number, batch in enumerate(intact_batches(loader, plan, epoch)):
            chunks = []
            # In chunks: a batch of the published size would take tens of gigabytes at once.
            for first in range(0, len(batch.label), _CHUNK):
                rows = slice(first, first + _CHUNK)
                (view,) = photometric(
                    tuple(crops[rows] for crops in batch.crops),
                    {name: values[rows] for name, values in batch.photometric.items()},
                )
                chunks.append(features_of(backbone, view, device, dtype))
            h = torch.cat(chunks)
            if number == 0:  # later ones show in the loss
                require_finite_features(bool(torch.isfinite(h).all()), backbone, source)
            yield h, batch.label

    return features


def cached_features(h: Tensor, label: Tensor, config: LinearConfig) -> Features:
    """Batches of features that were computed once, shuffled by `epoch_order`."""

    def features(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.tensor(epoch_order(len(h), config.seed, epoch), device=h.device)
        # The last, incomplete batch is dropped, as in training from images.
        for first in range(0, len(h) - config.batch_size + 1, config.batch_size):
            rows = order[first : first + config.batch_size]
            yield h[rows].float(), label[rows]

    return features
