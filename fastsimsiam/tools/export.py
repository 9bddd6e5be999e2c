"""`fastsimsiam export`: writes a backbone for other libraries, with a model card."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from fastsimsiam.config.evaluation import Stem, normalization
from fastsimsiam.config.stored import to_dict
from fastsimsiam.config.views import Channels, NormalizeConfig
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.pretrained import PretrainedBackbone, load_pretrained
from fastsimsiam.evaluate.recorded import as_text
from fastsimsiam.methods.registry import METHODS
from fastsimsiam.models.backbones import classifier_name
from fastsimsiam.models.image_size import require_image_size
from fastsimsiam.runs.metrics import read_summary
from fastsimsiam.system.files import require_writable, written_whole
from fastsimsiam.system.json_text import to_json
from fastsimsiam.system.optional import require

Format = Literal["torchvision", "timm", "onnx"]
_SUFFIX: Mapping[Format, str] = {
    "torchvision": ".safetensors",
    "timm": ".safetensors",
    "onnx": ".onnx",
}
_INSTALL = "pip install 'fastsimsiam[export]'"
_TIMM_CLASSES = 1000


def export(
    checkpoint: Path | str,
    out: Path | str,
    *,
    format: Format = "torchvision",
    arch: str | None = None,
    stem: Stem | None = None,
    image_size: int | None = None,
    crop_fraction: float | None = None,
    mean: Channels | None = None,
    std: Channels | None = None,
) -> tuple[Path, Path]:
    """Writes a backbone and its model card.

    Whatever changes a score is in the file's metadata, from which the evaluations of this package read
    it again: `knn` of the file gives the score of the run.

    Args:
        checkpoint: a file or the folder of a run; `load_backbone` lists the formats.
        out: file to write; its suffix is .safetensors, or .onnx.
        format: `torchvision`: the keys of torchvision's weights, without the last layer.
            `timm`: weights for `timm.create_model(ARCH, checkpoint_path=...)`, which requires a last
            layer: 1,000 classes, all zeros.
            `onnx`: a graph from normalized images (B, 3, S, S) to features (B, D), for any B.
        arch, stem: network of a state dict that does not record it; None: detected, for ResNets.
        image_size: side of the images in pixels; None: that of the training, else 224.
        crop_fraction: side of the centered square over the image's shorter side; None: that of the
            training, else 0.875.
        mean, std: normalization of pixels in [0, 1]; None: as recorded with the weights, else
            ImageNet's.

    Returns:
        The file and its card, FILE.md.

    Raises:
        UserError: an argument or the checkpoint is wrong; the message says what to change.
    """
    out = Path(out)
    if out.suffix != _SUFFIX[format]:
        raise UserError(f"DST is {out}: name it NAME{_SUFFIX[format]} for --format {format}")
    card_file = out.with_name(out.name + ".md")
    require_writable(out, "DST")
    require_writable(card_file, "card")
    pretrained = load_pretrained(
        Path(checkpoint),
        arch=arch,
        stem=stem,
        image_size=image_size,
        crop_fraction=crop_fraction,
        normalize=normalization(mean, std),
    )
    for note in (*pretrained.notes, *pretrained.notes_on_images):
        print(f"note: {note}", file=sys.stderr)
    require_image_size(pretrained.arch, pretrained.image_size, stem=pretrained.stem)
    card = model_card(pretrained, out, format)
    if format == "onnx":
        _write_onnx(pretrained, out)
    else:
        require("safetensors", f"--format {format}", _INSTALL)
        from safetensors.torch import save

        state: dict[str, Tensor] = {
            key: value.contiguous() for key, value in pretrained.backbone.state_dict().items()
        }
        if format == "timm":
            _require_timm_knows(pretrained)
            state["fc.weight"] = torch.zeros(_TIMM_CLASSES, pretrained.feature_dim)
            state["fc.bias"] = torch.zeros(_TIMM_CLASSES)
        metadata = {"format": "pt", **as_text(pretrained.record())}
        # safetensors' `save_file` makes files that only their owner may read.
        with written_whole(out, "DST") as file:
            file.write_bytes(save(state, metadata=metadata))
    with written_whole(card_file, "card") as file:
        file.write_text(card)
    return out, card_file


def _require_timm_knows(pretrained: PretrainedBackbone) -> None:
    """Refuses networks that differ from timm's of the same name in keys or arithmetic.

    Raises:
        UserError: says which format fits instead.
    """
    if pretrained.stem != "imagenet":
        raise UserError(
            "--format timm: timm has no network with the CIFAR stem: export it as torchvision or onnx"
        )
    if not pretrained.arch.startswith(("resnet", "resnext", "wide_resnet")):
        raise UserError(
            f"--format timm: only ResNets have the same keys in timm and torchvision, not "
            f"{pretrained.arch}: export it as torchvision or onnx"
        )


def _write_onnx(pretrained: PretrainedBackbone, out: Path) -> None:
    for module in ("onnx", "onnxscript"):
        require(module, "--format onnx", _INSTALL)
    size = pretrained.image_size
    example = torch.zeros(2, 3, size, size)
    backbone = pretrained.backbone.to(memory_format=torch.contiguous_format)
    batch = torch.export.Dim("batch")

    with written_whole(out, "DST") as file:
        torch.onnx.export(
            _Features(backbone).eval(),
            (example,),
            str(file),
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes={"images": {0: batch}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        _add_metadata(file, as_text(pretrained.record()))


def _add_metadata(file: Path, metadata: Mapping[str, str]) -> None:
    """Adds texts to a graph, where onnxruntime's `get_modelmeta` finds them."""
    import onnx

    graph = onnx.load(str(file))
    onnx.helper.set_model_props(graph, dict(metadata))
    onnx.save(graph, str(file))


class _Features(nn.Module):
    """A backbone with its output flattened to (B, D)."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) to features (B, D)."""
        h: Tensor = self.backbone(images).flatten(1)
        return h


_USE: Mapping[Format, str] = {
    "torchvision": """import torch
import torchvision
from safetensors.torch import load_file

model = torchvision.models.{arch}()
{stem}model.{classifier} = torch.nn.Identity()   # features instead of classes
model.load_state_dict(load_file("{file}"))
model.eval()
""",
    "timm": """import timm

model = timm.create_model("{arch}", checkpoint_path="{file}")
model.reset_classifier(0)   # features; the file's last layer is all zeros
model.eval()
""",
    "onnx": """import onnxruntime

session = onnxruntime.InferenceSession("{file}")
(features,) = session.run(None, {{"images": images}})   # float32 (B, 3, {size}, {size})
""",
}
_CIFAR_STEM = """model.conv1 = torch.nn.Conv2d(3, {width}, 3, padding=1, bias=False)
model.maxpool = torch.nn.Identity()
"""


def model_card(pretrained: PretrainedBackbone, out: Path, format: Format) -> str:
    """The model card in Markdown: use, recipe, data, scores, versions."""
    stem = ""
    if pretrained.stem == "cifar":
        stem = _CIFAR_STEM.format(width=pretrained.backbone.get_submodule("conv1").out_channels)
    use = _USE[format].format(
        arch=pretrained.arch,
        file=out.name,
        size=pretrained.image_size,
        stem=stem,
        classifier=classifier_name(pretrained.arch),
    )
    lines = [
        f"# {pretrained.arch}, {pretrained.feature_dim} features",
        "",
        f"Input: RGB images of {pretrained.image_size} pixels, values from 0 to 1, "
        f"{_normalized(pretrained.normalize)}. Output: {pretrained.feature_dim} features per image.",
        "",
        f"Evaluation: the centered square of {pretrained.crop_fraction:g} of the image's shorter side, "
        f"resized to {pretrained.image_size} pixels. These values are in the file's metadata.",
        "",
        f"```python\n{use}```",
        "",
    ]
    if pretrained.stem == "cifar":
        lines += ["The stem is a 3x3 convolution of stride 1; there is no max-pooling.", ""]
    if pretrained.config is None:
        lines += [f"Exported from {pretrained.path.name}, which does not record the training."]
        return "\n".join(lines) + "\n"
    config = to_dict(pretrained.config)
    method = METHODS.get(type(pretrained.config.method))  # the user's own may not be imported
    labels = "" if method is None else " with labels" if method.needs_labels else " without labels"
    lines += [
        f"Pretrained{labels} by the method `{pretrained.config.method.name}`: recipe "
        f"`{pretrained.config.recipe}`, {pretrained.step} steps of "
        f"{pretrained.config.batch_size} images, {pretrained.config.epochs} epochs planned.",
        *([f"Then trained on {pretrained.labels:,} labels."] if pretrained.labels else []),
        "",
        *_run_lines(pretrained),
        "## Config",
        "",
        "```json",
        to_json(config, indent=1),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _normalized(constants: NormalizeConfig) -> str:
    """What is done to values from 0 to 1, in words."""
    if constants == NormalizeConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)):
        return "not normalized"
    mean, std = (", ".join(f"{v:g}" for v in values) for values in (constants.mean, constants.std))
    return f"minus the mean ({mean}), over the standard deviation ({std})"


def _run_lines(pretrained: PretrainedBackbone) -> list[str]:
    """Lines on scores and versions of a checkpoint's run; none if its summary is missing."""
    stored = read_summary(pretrained.path.parent.parent) if pretrained.whole_method else {}
    if not stored:
        return []
    lines = []
    if stored.get("steps") == pretrained.step:
        scores = {k: v for k, v in stored.get("last", {}).items() if k.startswith("knn_")}
        lines += [f"- {name}: {value:.2f} %" for name, value in scores.items()]
        if _of_other_images(pretrained):
            lines += ["", "Scores are those of the training, with its image size and crop.", ""]
    lines += [f"- {name} {version}" for name, version in stored.get("versions", {}).items()]
    if stored.get("data"):
        lines.append(f"- data: {stored['data']}")
    if stored.get("commit"):
        lines.append(f"- commit: {stored['commit']}")
    return ["## Scores and versions", "", *lines, ""]


def _of_other_images(pretrained: PretrainedBackbone) -> bool:
    """Whether the file is for another image size or crop than its training was scored with."""
    config = pretrained.config
    return config is not None and (config.image_size, config.knn.crop_fraction) != (
        pretrained.image_size,
        pretrained.crop_fraction,
    )
