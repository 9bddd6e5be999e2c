"""A network with a classifier: what fine-tuning trains, and its files. Shapes: B batch, C classes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.context import EvalContext
from fastsimsiam.evaluate.features import centered_features
from fastsimsiam.evaluate.finite import require_finite_weights
from fastsimsiam.evaluate.linear import TRAINING_VIEW, new_layer
from fastsimsiam.evaluate.recorded import Recorded, as_text, from_text
from fastsimsiam.evaluate.trained_method import trained_method
from fastsimsiam.models.backbones import feature_extractor
from fastsimsiam.models.heads import mlp
from fastsimsiam.models.small_convolutions import use_matmul_for_small_maps
from fastsimsiam.plan.batches import TrainPlan
from fastsimsiam.runs.archive import read_stored
from fastsimsiam.storage.base import fingerprint
from fastsimsiam.system.files import require_file


class Classifier(nn.Module):
    """Backbone, some layers of a projector, and a linear layer.

    Attributes:
        backbone: images to features.
        head: features to inputs of the layer; may be empty.
        layer: to logits.
    """

    def __init__(self, backbone: nn.Module, head: nn.Sequential, layer: nn.Linear) -> None:
        """Takes the parts."""
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.layer = layer
        self.dtype = torch.float32

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) in float32 of normalized images (B, 3, S, S); `dtype` below the last layer."""
        device = images.device.type
        with torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32):
            hidden = self.head(self.backbone(images).flatten(1))
        with torch.autocast(device, enabled=False):
            logits: Tensor = self.layer(hidden.float())
        return logits


def new_classifier(context: EvalContext, head_layers: int) -> Classifier:
    """The pretrained backbone of a context with the first layers of its projector.

    Args:
        context: of the evaluation.
        head_layers: hidden layers of the projector that are kept.

    Raises:
        UserError: the file holds no projector, or one of fewer layers.
    """
    pretrained = context.pretrained
    head, width = nn.Sequential(), pretrained.feature_dim
    if head_layers:
        layers = hidden_layers(context)
        if head_layers > len(layers):
            most = f"give 0 to {len(layers)}" if layers else "give 0"
            raise UserError(
                f"--head-layers is {head_layers}, but {pretrained.path} has a projector of "
                f"{len(layers)} hidden layers: {most}"
            )
        head = nn.Sequential(*(module for layer in layers[:head_layers] for module in layer))
        require_finite_weights(head, f"the projector in {pretrained.path}")
        width = next(m.out_features for m in reversed(head) if isinstance(m, nn.Linear))
    layer = new_layer(width, len(context.train.classes))
    return placed(Classifier(pretrained.backbone, head, layer), context)


def hidden_layers(context: EvalContext) -> list[list[nn.Module]]:
    """The projector's hidden layers, each with its norm and ReLU; none where there is no projector."""
    method = trained_method(context.pretrained)
    projector = getattr(method, "projector", None)
    layers: list[list[nn.Module]] = [[]]
    for module in projector if isinstance(projector, nn.Sequential) else ():
        layers[-1].append(module)
        if isinstance(module, nn.ReLU):
            layers.append([])
    return layers[:-1]


def placed(classifier: Classifier, context: EvalContext) -> Classifier:
    """A classifier on the context's device, in its data type, made fast for it."""
    classifier.dtype = context.dtype
    classifier.to(context.device).to(memory_format=torch.channels_last)
    if context.device.type == "cpu":
        use_matmul_for_small_maps(classifier)
    return classifier


@dataclass(frozen=True, kw_only=True)
class StoredClassifier:
    """A trained classifier in a file.

    Attributes:
        classifier: on the CPU, in eval mode.
        recorded: what is recorded beside its weights: network, image size, normalization.
        classes: names of the classes, by label.
        labeled: numbers of the training images whose labels it was trained with.
        data: fingerprint of these training images.
        path: the file.
    """

    classifier: Classifier
    recorded: Recorded
    classes: tuple[str, ...]
    labeled: Tensor
    data: str
    path: Path


def stored_values(context: EvalContext, labeled: Tensor) -> dict[str, Any]:
    """What a file of a classifier holds beside its state, see `load_classifier`."""
    return {
        "weights": context.pretrained.record(),
        "classes": list(context.train.classes),
        "labeled": labeled,
        "data": fingerprint(context.train),
    }


def load_classifier(path: Path, name: str = "finetune.pt") -> StoredClassifier:
    """Reads a classifier that `finetune` or `distill` wrote.

    Args:
        path: the file, or its folder.
        name: of the file in a folder.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    if path.is_dir():
        path = path / (name if (path / name).exists() else "distill.pt")
    require_file(path, "classifier", "pass the folder that finetune --out has written")
    stored = read_stored(path)
    try:
        recorded = from_text(as_text(stored["weights"]), path)
        state, classes = stored["network"], tuple(stored["classes"])
        labeled, data = stored["labeled"].long(), str(stored["data"])
        classifier = _empty(recorded, state, len(classes))
        classifier.load_state_dict(state)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is no classifier of finetune or distill, or it is damaged: pass another"
        ) from error
    require_finite_weights(classifier, path)
    return StoredClassifier(
        classifier=classifier.eval(),
        recorded=recorded,
        classes=classes,
        labeled=labeled,
        data=data,
        path=path,
    )


def _empty(recorded: Recorded, state: Mapping[str, Tensor], classes: int) -> Classifier:
    """A classifier of the shapes of a state."""
    if recorded.arch is None:
        raise ValueError
    backbone, feature_dim = feature_extractor(recorded.arch, recorded.stem or "imagenet")
    linear = [key for key, value in state.items() if key.startswith("head.") and value.ndim == 2]
    widths = [feature_dim, *(len(state[key]) for key in linear)]
    head = nn.Sequential()
    if linear:
        norm = any(key.endswith("running_mean") and key.startswith("head.") for key in state)
        bias = linear[0].replace("weight", "bias") in state
        # The last linear layer is for its ReLU alone, and dropped again.
        head = mlp([*widths, 1], hidden_norm=norm, hidden_bias=bias)[:-1]
    return Classifier(backbone, head, nn.Linear(widths[-1], classes))


def training_plan(
    context: EvalContext, *, image_size: int, batch_size: int, seed: int, only: Any = None
) -> TrainPlan:
    """Random crops of the training images, see `TrainPlan`."""
    return TrainPlan(
        label=context.train.label,
        sizes=context.train.sizes,
        seed=seed,
        specs=(TRAINING_VIEW,),
        image_size=image_size,
        batch_size=batch_size,
        only=only,
    )


def validation(context: EvalContext, classifier: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and labels of the validation images, in eval mode."""
    for logits, batch in centered_features(
        classifier,
        context.loader("val"),
        context.centered("val"),
        constants=context.pretrained.normalize,
        device=context.device,
        dtype=context.dtype,
        source=context.pretrained.path,
    ):
        yield logits, batch.label
