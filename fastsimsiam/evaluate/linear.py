"""Linear evaluation of a frozen backbone. Shapes: B batch, D features, C classes.

The published protocol (arXiv 2011.10566, appendix A, and its code release): a linear layer on the
features of random crops, trained by LARS for 90 epochs; top-1 of the last epoch.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastsimsiam.augment.photometric import Photometric
from fastsimsiam.config.evaluation import LinearConfig
from fastsimsiam.config.optimizer import OptimizerConfig
from fastsimsiam.config.views import NormalizeConfig, ViewSpec
from fastsimsiam.evaluate import supervised
from fastsimsiam.evaluate.features import features_of, intact_batches
from fastsimsiam.evaluate.finite import require_finite_features
from fastsimsiam.evaluate.supervised import SupervisedState, Training, start
from fastsimsiam.loaders.base import Loader
from fastsimsiam.plan.batches import TrainPlan
from fastsimsiam.plan.order import epoch_order

TRAINING_VIEW = ViewSpec(area=(0.08, 1.0), jitter=0.0, grayscale=0.0, blur=0.0)
"""torchvision's RandomResizedCrop, and a flip."""
_CHUNK = 256
"""Images that go through the backbone at once."""


def optimizer_of(config: LinearConfig) -> OptimizerConfig:
    """The optimizer of the layer; its cosine is evaluated once per epoch."""
    return OptimizerConfig(
        name="larc" if config.optimizer == "lars" else "sgd",
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )


def new_state(
    feature_dim: int, num_classes: int, config: LinearConfig, device: torch.device
) -> SupervisedState:
    """A new layer and its optimizer."""
    torch.manual_seed(config.seed)
    layer = new_layer(feature_dim, num_classes).to(device)
    return start(layer, optimizer_of(config), device, name="layer")


def new_layer(feature_dim: int, num_classes: int) -> nn.Linear:
    """A linear classifier: weights of standard deviation 0.01, biases zero."""
    layer = nn.Linear(feature_dim, num_classes)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


Features = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
"""Function of the epoch that yields features (B, D) in float32 and labels (B,) per batch."""


def train(
    state: SupervisedState,
    features: Features,
    config: LinearConfig,
    after_epoch: Callable[[SupervisedState], None] = lambda state: None,
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
    supervised.train(
        state,
        features,
        lambda batch: F.cross_entropy(state.network(batch[0]), batch[1]),
        Training(
            epochs=config.epochs,
            batch_size=config.batch_size,
            optimizer=optimizer_of(config),
            lr_option="--lr",
        ),
        steps_per_epoch=1,  # the learning rate is that of the epoch
        after_epoch=after_epoch,
    )


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
