"""Finds the backbone in a file of weights of another package, whatever its keys begin with.

The place is found by the keys themselves: every prefix under which the file has all keys of an
architecture, in the right shapes, is a network. `module.`, `encoder_q.` or `student.backbone.` need no
list. The children of a network in an `nn.Sequential` have numbers instead of names. ResNets that were
written for CIFAR (SupContrast's, lightly's) call torchvision's `downsample` `shortcut`.
"""

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsimsiam.config.evaluation import Stem
from fastsimsiam.errors import UserError
from fastsimsiam.models.backbones import classifier_name, shape_extractor

CANDIDATES = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("wide_resnet50_2", "wide_resnet101_2"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
)
"""Networks that are detected by their keys."""
_STEMS: tuple[Stem, ...] = ("imagenet", "cifar")
_SHOWN = 4
"""Keys that an error message lists."""
_DEPTH = 5
"""Dicts within dicts that are searched for weights."""
_WRAPPERS = re.compile(
    r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
"""What torch.compile, FSDP, checkpointing and DeepSpeed put into keys, anywhere and repeatedly."""
_TARGETS = re.compile(
    r"momentum|teacher|loss\.moco_encoder|(?<![^._])(target|ema|k|key|avg|averaged|shadow)(?![^._])"
)
"""Words for the slowly moving copy of a network, which is not the one that was trained."""
_ONLINE = re.compile(r"student|online|encoder_q|query")
_HEADS = re.compile(
    r".*(fc|head|proj|pred|classif|linear|proto|queue|probe|loss|criterion|center|rng|logit"
    r"|temperature).*|mean|std|\d+"
)
"""Names of what may stand beside a backbone without changing its features."""

_SHORTCUT = re.compile(r"(?<=\.0\.)shortcut\.(?=[01]\.)")
"""The convolution and the BatchNorm beside the others of a stage's first block."""
_PARTS = re.compile(r"layer\d+\.|features\.")
"""What the names of a network's inner parts begin with."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A backbone in a file.

    Attributes:
        arch: torchvision's name of the network.
        stem: `imagenet` or `cifar`.
        weights: the backbone's state dict; the counters of BatchNorm may be missing.
        notes: what the user should know: which of several networks was taken.
    """

    arch: str
    stem: Stem
    weights: Mapping[str, Tensor]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """Keys of a file under one prefix, compared with an architecture."""

    arch: str
    stem: Stem
    prefix: str
    weights: Mapping[str, Tensor]
    missing: list[str]
    reshaped: list[str]
    unexpected: list[str]

    @property
    def fits(self) -> bool:
        return not (self.missing or self.reshaped or self.unexpected)

    @property
    def distance(self) -> tuple[int, int]:
        """Smaller for a nearer architecture."""
        return len(self.missing) + len(self.reshaped), len(self.unexpected)


def find_backbone(
    content: Mapping[str, Any],
    path: Path,
    *,
    arch: str | None,
    stem: Stem | None,
    recorded: str | None = None,
) -> Found:
    """Finds the backbone in the content of a file.

    Args:
        content: tensors, or dicts that hold some.
        path: the file, for messages.
        arch: the only network to look for; None: that of `recorded`, then `CANDIDATES`.
        stem: the only stem to look for.
        recorded: the network's name in the file, which may be that of a network unknown here.

    Raises:
        UserError: no network fits; names the nearest, its prefix and the keys that differ.
    """
    tensors = _tensors(content)
    if not tensors:
        raise UserError(f"{path} holds no weights: pass a state dict of a torchvision network")
    nearest: _Trial | None = None
    second_choice: list[_Trial] = []
    for name in _names(arch, recorded):
        trials = list(_trials(tensors, name, stem))
        fitting = [trial for trial in trials if trial.fits]
        trained = [trial for trial in fitting if not _TARGETS.search(trial.prefix)]
        if trained:
            return _choose(trained, fitting)
        second_choice = second_choice or fitting
        nearest = min([*trials, *([nearest] if nearest else [])], key=lambda t: t.distance)
    if second_choice:
        return _choose(second_choice, second_choice)
    assert nearest is not None
    raise UserError(_message(nearest, tensors, path, arch, recorded))


def _names(arch: str | None, recorded: str | None) -> tuple[str, ...]:
    if arch:
        return (arch,)
    try:
        first = (recorded,) if recorded and classifier_name(recorded) else ()
    except UserError:  # a network of another package
        first = ()
    return tuple(dict.fromkeys((*first, *CANDIDATES)))


def _tensors(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """All tensors of nested dicts, by their keys joined with dots, without wrappers in the keys."""
    tensors: dict[str, Tensor] = {}

    def walk(mapping: Mapping[Any, Any], prefix: str, depth: int) -> None:
        for key, value in mapping.items():
            if not isinstance(key, str):
                continue
            name = _WRAPPERS.sub("", f"{prefix}{key}")
            if isinstance(value, Mapping) and depth:
                walk(value, f"{name}.", depth - 1)
            elif isinstance(value, Tensor):
                if value.layout == torch.strided and not (value.is_meta or value.is_quantized):
                    tensors.setdefault(name, value.detach())
            elif isinstance(value, np.ndarray) and value.dtype in (
                np.float16,
                np.float32,
                np.float64,
            ):
                tensors.setdefault(
                    name, torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
                )

    walk(content, "", _DEPTH)
    return tensors


@functools.cache
def _network(arch: str, stem: Stem) -> tuple[Mapping[str, torch.Size], tuple[str, ...], str]:
    """Shapes of a network's state, names of its children that have one, and its classifier's name."""
    backbone, _ = shape_extractor(arch, stem)
    shapes = {name: value.shape for name, value in backbone.state_dict().items()}
    children = tuple(name for name, child in backbone.named_children() if child.state_dict())
    return shapes, children, classifier_name(arch)


def required_keys(state: Iterable[str]) -> list[str]:
    """Keys that a file must have: all but the counters of BatchNorm."""
    return [key for key in state if not key.endswith("num_batches_tracked")]


def _trials(tensors: Mapping[str, Tensor], arch: str, stem: Stem | None) -> Iterator[_Trial]:
    """Every prefix of the file's keys, compared with an architecture and its stems."""
    stems = (stem,) if stem else _STEMS if re.search("resnet|resnext", arch) else _STEMS[:1]
    shapes, children, _ = _network(arch, stems[0])
    if any(".downsample." in key for key in shapes):
        tensors = {_SHORTCUT.sub("downsample.", key): value for key, value in tensors.items()}
    views = [*_named(tensors, required_keys(shapes)[0]), *_numbered(tensors, children)]
    for candidate in stems:
        for prefix, view in views or [("", tensors)]:
            yield _compare(view, prefix, arch, candidate)


def _named(
    tensors: Mapping[str, Tensor], anchor: str
) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Yields every prefix of a network's first key, shortest first, and the tensors under it."""
    found = {key.removesuffix(anchor) for key in tensors if f".{key}".endswith(f".{anchor}")}
    # Parts of a network have such keys too: `layer1.0.conv1.weight`.
    outer = [
        p
        for p in found
        if not any(_PARTS.match(p.removeprefix(q)) for q in found if p.startswith(q))
    ]
    for prefix in sorted(outer, key=lambda p: (len(p), p)):
        yield prefix, _under(tensors, prefix)


def _numbered(
    tensors: Mapping[str, Tensor], children: tuple[str, ...]
) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Yields prefixes of an `nn.Sequential` of a network's children, whose names are put in place."""
    numbers: dict[str, set[int]] = {}
    for key in tensors:
        for match in re.finditer(r"(?:(?<=\.)|^)(\d{1,4})\.", key):
            numbers.setdefault(key[: match.start()], set()).add(int(match[1]))
    for prefix, found in sorted(numbers.items()):
        if len(found) < len(children):
            continue
        names = dict(zip(map(str, sorted(found)), children, strict=False))
        renamed = {}
        for key, value in _under(tensors, prefix).items():
            number, dot, rest = key.partition(".")
            renamed[names.get(number, number) + dot + rest] = value
        yield prefix, renamed


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: t for key, t in tensors.items() if key.startswith(prefix)}


def _compare(view: Mapping[str, Tensor], prefix: str, arch: str, stem: Stem) -> _Trial:
    shapes, children, classifier = _network(arch, stem)
    required = required_keys(shapes)
    counters = shapes.keys() - set(required)
    weights = {
        key: view[key]
        for key, shape in shapes.items()
        if key in view and not (key in counters and view[key].shape != shape)
    }
    # In place of the classifier there may be a projector: the official checkpoint has it in `fc`.
    others = [k for k in view if k not in shapes and not k.startswith(f"{classifier}.")]
    wholes = {key.partition(".")[0] for key in others if key.endswith(f".{required[0]}")}
    wholes -= set(children)  # `layer1` has a `conv1` of its own
    return _Trial(
        arch=arch,
        stem=stem,
        prefix=prefix,
        weights=weights,
        missing=sorted(key for key in required if key not in view),
        reshaped=sorted(
            key
            for key in required
            if key in view
            and (view[key].shape != shapes[key] or not view[key].dtype.is_floating_point)
        ),
        unexpected=sorted(
            key
            for key in others
            if not ((top := key.partition(".")[0]) in wholes or _HEADS.fullmatch(top))
        ),
    )


def _choose(choice: list[_Trial], all_that_fit: list[_Trial]) -> Found:
    """The first of `choice`, and a note on the others if their weights differ."""
    taken = min(choice, key=lambda t: not _ONLINE.search(t.prefix))
    notes = [f"weights are those under {taken.prefix}"] if taken.prefix else []
    others = [trial.prefix for trial in all_that_fit if not _equal(trial.weights, taken.weights)]
    if others:
        more = ", ".join(prefix or "no prefix" for prefix in dict.fromkeys(others))
        notes = [f"weights are those under {taken.prefix or 'no prefix'}, not those under {more}"]
    return Found(arch=taken.arch, stem=taken.stem, weights=taken.weights, notes=tuple(notes))


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(one[key], other[key]) for key in required_keys(one) if key in other)


def _message(
    nearest: _Trial,
    tensors: Mapping[str, Tensor],
    path: Path,
    arch: str | None,
    recorded: str | None,
) -> str:
    place = f" under {nearest.prefix}" if nearest.prefix else ""
    differ, fix = _difference(nearest, place)
    if arch:
        return f"{path} {differ}: {fix}"
    unknown = ""
    if recorded and recorded not in CANDIDATES:
        unknown = (
            f" (the file names {recorded[:40]}, which has other keys or is not registered here)"
        )
    if len(nearest.weights) * 2 < len(tensors) and len(nearest.missing) > len(nearest.weights):
        differ = f"its keys are others: {_shorten(tensors)}"
    else:
        differ = f"the nearest is {nearest.arch}, but the file {differ}"
    return (
        f"{path} fits no network that is detected, {CANDIDATES[0]} to {CANDIDATES[-1]}{unknown}; "
        f"{differ}: pass --arch with torchvision's name of the network, or a file with only the "
        "backbone"
    )


def _difference(trial: _Trial, place: str) -> tuple[str, str]:
    """What differs between a file and an architecture, and what to do."""
    if trial.unexpected and not trial.missing:
        return (
            f"has keys{place} that {trial.arch} does not have: {_shorten(trial.unexpected)}",
            "pass another --arch, or a file with only the backbone",
        )
    if trial.missing:
        return (
            f"lacks keys{place} of {trial.arch}: {_shorten(trial.missing)}",
            "pass another --arch",
        )
    return (
        f"has other shapes{place} than {trial.arch}: {_shorten(trial.reshaped)}",
        "pass another --arch or --stem",
    )


def _shorten(keys: Iterable[str]) -> str:
    """The first keys, and how many more there are."""
    names = [name[:80] for name in keys]
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest
