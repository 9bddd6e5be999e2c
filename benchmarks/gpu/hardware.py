"""The machine: its software and clocks, its ceilings, and the time that convolutions alone take."""

import importlib
import os
import pkgutil
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastsimsiam
from benchmarks.gpu.worker import Bench, Result
from benchmarks.step import ceilings
from fastsimsiam.models.backbones import feature_extractor
from fastsimsiam.system.compiler import why_compile_fails
from fastsimsiam.system.optional import has_dali, has_ffcv

_ROUNDS = 5
Shape = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], int]
"""Input (without images), weight, stride, padding and groups of a convolution."""


def _told(*words: str) -> str:
    if shutil.which(words[0]) is None:
        return ""
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=20).stdout


def software(bench: Bench) -> Result:
    """Versions, clocks, processor, whether it compiles, and every module of the package imported."""
    query = (
        "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.draw,power.limit,memory.total"
    )
    gpu = bench.device.type == "cuda"
    failed = {}
    for module in pkgutil.walk_packages(fastsimsiam.__path__, "fastsimsiam."):
        if module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
        except Exception as error:
            failed[module.name] = f"{type(error).__name__}: {error}"
    return {
        "python": sys.version,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if gpu else None,
        "capability": torch.cuda.get_device_capability() if gpu else None,
        "nvidia_smi": _told("nvidia-smi", f"--query-gpu={query}", "--format=csv") if gpu else "",
        "lscpu": _told("lscpu"),
        "why_compile_fails": why_compile_fails(bench.device.type),
        "dali": has_dali(),
        "ffcv": has_ffcv(),
        "modules_that_do_not_import": failed,
        "environment": {k: v for k, v in os.environ.items() if k.startswith(("TORCH", "PYTORCH"))},
    }


def timed(work: Callable[[], object], device: torch.device, rounds: int = _ROUNDS) -> float:
    """Milliseconds of a call, over calls back to back, after two for warm-up."""
    for _ in range(2):
        work()
    if device.type != "cuda":
        started = time.perf_counter()
        for _ in range(rounds):
            work()
        return (time.perf_counter() - started) * 1e3 / rounds
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(rounds):
        work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / rounds


def convolutions(arch: str, image_size: int) -> Counter[Shape]:
    """How often a backbone has each convolution."""
    backbone = feature_extractor(arch, "imagenet")[0].to("meta")
    found: Counter[Shape] = Counter()

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        assert not isinstance(layer.padding, str)
        shape = tuple(inputs[0].shape[1:]), tuple(layer.weight.shape)
        found[(*shape, layer.stride, layer.padding, layer.groups)] += 1

    for layer in backbone.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(note)
    backbone(torch.empty(2, 3, image_size, image_size, device="meta"))
    return found


def measure_convolutions(
    found: Counter[Shape], images: int, dtype: torch.dtype, device: torch.device
) -> list[dict[str, Any]]:
    """Milliseconds of each convolution: forward, gradient of its input, gradient of its weights."""
    rows = []
    for shape, count in sorted(found.items(), key=lambda item: -item[0][0][1]):
        rows.append({"count": count, **_one_convolution(shape, images, dtype, device)})
    return rows


def _one_convolution(
    shape: Shape, images: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    size, kernel, stride, padding, groups = shape
    layout = torch.channels_last
    x = torch.randn((images, *size), device=device, dtype=dtype).to(memory_format=layout)
    w = torch.randn(kernel, device=device, dtype=dtype).to(memory_format=layout)

    def forward() -> Tensor:
        return F.conv2d(x, w, None, stride, padding, 1, groups)

    y = forward()
    g = torch.randn_like(y)

    def backward(*wanted: bool) -> Callable[[], object]:
        options = (stride, padding, (1, 1), False, (0, 0), groups, wanted)
        return lambda: torch.ops.aten.convolution_backward(g, x, w, None, *options)

    times = {
        "forward": timed(forward, device),
        # The views need no gradient.
        "dgrad": 0.0 if size[0] == 3 else timed(backward(True, False, False), device),
        "wgrad": timed(backward(False, True, False), device),
    }
    flops = 2.0 * y.numel() * w[0].numel()
    return {
        "input": size,
        "weight": kernel,
        "stride": stride[0],
        "ms": times,
        "tflops": {part: flops / ms / 1e9 if ms else 0.0 for part, ms in times.items()},
        "bytes": 2 * (x.numel() + y.numel()),
    }


def limits(bench: Bench) -> Result:
    """Peak rates of products and copies, and the convolutions of a step by themselves."""
    torch.backends.cudnn.benchmark = True
    precision = torch.get_float32_matmul_precision()
    peak = ceilings(bench.device)
    torch.set_float32_matmul_precision(precision)
    found = convolutions(bench.args.arch, bench.args.image_size)
    rows = measure_convolutions(found, bench.batch_size, torch.bfloat16, bench.device)
    per_view = {part: sum(row["count"] * row["ms"][part] for row in rows) for part in rows[0]["ms"]}
    return {
        "ceilings": peak,
        "images": bench.batch_size,
        "convolutions": rows,
        "convolutions_ms_of_both_views": {part: 2 * ms for part, ms in per_view.items()},
    }
