"""The backbone on one view, forward and backward: eager, and compiled in several ways."""

import time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.hardware import timed
from benchmarks.gpu.trainer import activities, kernels_of
from benchmarks.gpu.worker import Bench, Result
from benchmarks.step import config_of
from benchmarks.step_variants import VARIANTS, Step, with_variant
from fastsimsiam.doctor.measure import wait_for
from fastsimsiam.models.backbones import feature_extractor

_ROUNDS = 12
_PROFILED = 2
_NO_GRADIENT = 1e-5
"""Share of the largest norm below which a gradient is rounding alone."""


def eager_steps(bench: Bench) -> Result:
    """The whole step without compilation, in bfloat16 and in float16, beside a textbook's."""
    config = config_of(bench.args.arch, bench.args.image_size, bench.batch_size)
    found: dict[str, float] = {}
    for name in ("eager", "textbook-amp-nhwc"):
        step = Step(config, VARIANTS[name], bench.device)
        views = step.views(config, 0)
        found[name] = timed(lambda s=step, v=views: s(v), bench.device, 4)
        del step, views
        _empty(bench)
        print(name, found[name], flush=True)
    return {"batch_size": bench.batch_size, "step_ms": found}


def _empty(bench: Bench) -> None:
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()


class OneView(nn.Module):
    """A backbone in a variant, and a loss of its features."""

    def __init__(self, bench: Bench, name: str, dtype: torch.dtype) -> None:
        """Builds the backbone of every variant with the same weights."""
        super().__init__()
        torch.manual_seed(0)
        backbone, _ = feature_extractor(bench.args.arch, "imagenet")
        for module in backbone.modules():
            if isinstance(module, nn.BatchNorm2d):  # else a branch's parameters have no gradient
                nn.init.ones_(module.weight)
        backbone = backbone.to(bench.device).to(memory_format=torch.channels_last)
        self.backbone = with_variant(backbone, VARIANTS[name])
        self._type, self._dtype = bench.device.type, dtype

    def forward(self, view: Tensor) -> Tensor:
        """The mean square of all features."""
        with torch.autocast(self._type, self._dtype, enabled=self._dtype != torch.float32):
            features: Tensor = self.backbone(view)
        return features.float().square().mean()


def one_view(bench: Bench, name: str, dtype: torch.dtype = torch.bfloat16) -> Result:
    """Milliseconds of forward and backward pass on a batch of one view, and whether they are exact."""
    variant = VARIANTS[name]
    torch.compiler.reset()
    _empty(bench)
    torch.backends.cudnn.benchmark = True
    network = OneView(bench, name, dtype)
    size = bench.args.image_size
    generator = torch.Generator(bench.device).manual_seed(0)
    view = torch.randn(
        (bench.batch_size, 3, size, size), device=bench.device, generator=generator
    ).to(dtype, memory_format=torch.channels_last)
    started = time.perf_counter()
    if variant.compiled:
        network.compile(fullgraph=True, dynamic=False, options=variant.inductor)

    def run() -> None:
        network.zero_grad(set_to_none=True)
        network(view).backward()

    run()
    wait_for(bench.device)
    first = time.perf_counter() - started
    norms = {
        name.replace("_orig_mod.", ""): parameter.grad.float().norm().item()
        for name, parameter in network.named_parameters()
        if parameter.grad is not None
    }
    milliseconds = [timed(run, bench.device, _ROUNDS // 2) for _ in range(2)]
    result: Result = {
        "variant": name,
        "dtype": str(dtype),
        "images": bench.batch_size,
        "first_seconds": first,
        "ms": milliseconds,
        "differences": _differences(bench, name, norms),
    }
    if bench.device.type == "cuda":
        with torch.profiler.profile(activities=activities(bench.device)) as profiler:
            for _ in range(_PROFILED):
                run()
            wait_for(bench.device)
        rows = kernels_of(profiler, _PROFILED)
        kinds: dict[str, float] = {}
        for row in rows:
            kinds[row["kind"]] = kinds.get(row["kind"], 0.0) + row["ms"]
        result |= {"kinds_ms": kinds, "kernels": rows[:60]}
    print(name, milliseconds, f"first {first:.1f} s", flush=True)
    return result


def _differences(bench: Bench, name: str, norms: dict[str, float]) -> dict[str, Any]:
    """The largest relative difference of a gradient's norm from those of the first variant."""
    reference: dict[str, float] = bench.notes.setdefault("norms", norms)
    least = _NO_GRADIENT * max(reference.values())
    found = {
        key: abs(norms.get(key, 0.0) - norm) / max(norm, least) for key, norm in reference.items()
    }
    worst = max(found, key=lambda key: found[key])
    return {
        "largest": found[worst],
        "of": worst,
        "missing": sorted(reference.keys() ^ norms.keys()),
    }
