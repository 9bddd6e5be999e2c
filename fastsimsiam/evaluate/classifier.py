"""A network with a classifier: what fine-tuning trains, and its files. Shapes: B batch, C classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.context import EvalContext
from fastsimsiam.evaluate.finite import require_finite_weights
from fastsimsiam.evaluate.linear import new_layer
from fastsimsiam.evaluate.recorded import Recorded, as_text, from_text
from fastsimsiam.evaluate.trained_method import trained_method
from fastsimsiam.models.backbones import feature_extractor
from fastsimsiam.models.heads import mlp
from fastsimsiam.models.small_convolutions import use_matmul_for_small_maps
from fastsimsiam.runs.archive import read_stored
from fastsimsiam.system.files import require_file

FINETUNED, DISTILLED = "finetune.pt", "distill.pt"
"""Names of the files in the folders of `finetune` and `distill`."""
Layers = Sequence[Sequence[nn.Module]]
"""The hidden layers of a projector, each a linear layer with its norm and its ReLU."""


class Classifier(nn.Module):
    """Backbone, some layers of a projector, and a linear layer.

    Attributes:
        backbone: images to features.
        head: features to inputs of the layer; may be empty.
        layer: to logits.
        dtype: data type of the arithmetic below the last layer, which is in float32.
    """

    def __init__(self, backbone: nn.Module, head: nn.Sequential, layer: nn.Linear) -> None:
        """Takes the parts."""
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.layer = layer
        self.dtype = torch.float32

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) in float32 of normalized images (B, 3, S, S)."""
        device = images.device.type
        with torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32):
            hidden = self.head(self.backbone(images).flatten(1))
        with torch.autocast(device, enabled=False):
            logits: Tensor = self.layer(hidden.float())
        return logits


def new_classifier(context: EvalContext, layers: Layers = ()) -> Classifier:
    """The backbone of a context, layers of its projector, and a new linear layer.

    Args:
        context: of the evaluation.
        layers: those of the projector that are kept, see `hidden_layers`.
    """
    head = nn.Sequential(*(module for layer in layers for module in layer))
    width = next(
        (module.out_features for module in reversed(head) if isinstance(module, nn.Linear)),
        context.pretrained.feature_dim,
    )
    classifier = Classifier(
        context.pretrained.backbone, head, new_layer(width, len(context.train.classes))
    )
    return placed(classifier, context)


def hidden_layers(context: EvalContext) -> list[list[nn.Module]]:
    """The hidden layers of the checkpoint's projector; none where there is no such projector.

    A file of a classifier holds linear layers, BatchNorm and ReLU, as `models.heads.mlp` makes them:
    a projector of other layers has none of these.

    Raises:
        UserError: the weights are not finite.
    """
    method = trained_method(context.pretrained)
    projector = getattr(method, "projector", None)
    layers: list[list[nn.Module]] = [[]]
    for module in projector if isinstance(projector, nn.Sequential) else ():
        if type(module) not in (nn.Linear, nn.BatchNorm1d, nn.ReLU):
            break
        layers[-1].append(module)
        if isinstance(module, nn.ReLU):
            layers.append([])
    hidden = layers[:-1]
    require_finite_weights(
        nn.ModuleList(module for layer in hidden for module in layer),
        f"the projector in {context.pretrained.path}",
    )
    return hidden


def placed(classifier: Classifier, context: EvalContext) -> Classifier:
    """A classifier on the context's device, in its data type, made fast for it."""
    classifier.dtype = context.dtype
    classifier.to(context.device).to(memory_format=torch.channels_last)
    if context.device.type == "cpu":
        use_matmul_for_small_maps(classifier)
    return classifier


@dataclass(frozen=True, kw_only=True)
class Labeled:
    """The images whose labels a classifier was trained with, or its teacher.

    Attributes:
        images: their numbers among the training images, int64.
        data: fingerprint of those training images.
    """

    images: Tensor
    data: str


@dataclass(frozen=True, kw_only=True)
class StoredClassifier:
    """A trained classifier in a file.

    Attributes:
        classifier: on the CPU, in eval mode.
        recorded: what is recorded beside its weights: network, image size, normalization.
        classes: names of the classes, by label.
        labeled: what it was trained with.
        path: the file.
        epochs: epochs done, and those that were asked for.
    """

    classifier: Classifier
    recorded: Recorded
    classes: tuple[str, ...]
    labeled: Labeled
    path: Path
    epochs: tuple[int, int]


def stored_values(context: EvalContext, labeled: Labeled) -> dict[str, Any]:
    """What a file of a classifier holds beside its state, see `load_classifier`."""
    return {
        "weights": context.pretrained.record(),
        "classes": list(context.train.classes),
        "labeled": labeled.images,
        "data": labeled.data,
    }


def load_classifier(path: Path) -> StoredClassifier:
    """Reads a classifier that `finetune` or `distill` wrote.

    Args:
        path: the file, or its folder.

    Raises:
        UserError: there is no such file, it is damaged, or its network is unknown.
    """
    if path.is_dir():
        path = path / (FINETUNED if (path / FINETUNED).exists() else DISTILLED)
    require_file(path, "classifier", "pass the folder that finetune --out has written")
    stored = read_stored(path)
    try:
        recorded = from_text(as_text(stored["weights"]), path)
        state, classes = stored["network"], tuple(stored["classes"])
        labeled = Labeled(images=stored["labeled"].long(), data=str(stored["data"]))
        epochs = (int(stored["epoch"]), int(stored["identity"]["epochs"]))
        classifier = _empty(recorded, state, len(classes))
        classifier.load_state_dict(state)
    except UserError:
        raise
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
        path=path,
        epochs=epochs,
    )


def _empty(recorded: Recorded, state: Mapping[str, Tensor], classes: int) -> Classifier:
    """A classifier of the shapes of a state."""
    if recorded.arch is None:
        raise ValueError("no arch")
    backbone, feature_dim = feature_extractor(recorded.arch, recorded.stem or "imagenet")
    linear = [key for key, value in state.items() if key.startswith("head.") and value.ndim == 2]
    widths = [feature_dim, *(len(state[key]) for key in linear)]
    head = nn.Sequential()
    if linear:
        norm = any(key.startswith("head.") and key.endswith("running_mean") for key in state)
        bias = linear[0].replace("weight", "bias") in state
        # The last linear layer is for its ReLU alone, and dropped again.
        head = mlp([*widths, 1], hidden_norm=norm, hidden_bias=bias)[:-1]
    return Classifier(backbone, head, nn.Linear(widths[-1], classes))
