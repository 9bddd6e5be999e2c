"""The trainer as `pretrain` builds it: compiled once, then timed, profiled and fed by each loader."""

import re
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks.gpu.exactness import exactness
from benchmarks.gpu.hardware import timed
from benchmarks.gpu.worker import Bench, OutOfTimeError, Result
from benchmarks.harness import photographs
from fastsimsiam.config.run import (
    CheckpointConfig,
    CompileName,
    Config,
    CpuConfig,
    FuseName,
    KnnConfig,
)
from fastsimsiam.doctor.measure import (
    SMALL_LR,
    batches_of,
    measure_loader,
    measure_train,
    trainer_of,
    wait_for,
)
from fastsimsiam.doctor.synthetic import repeated
from fastsimsiam.loaders.base import LoaderOptions
from fastsimsiam.loaders.registry import build_loader
from fastsimsiam.recipes import catalogue
from fastsimsiam.storage.image_files import ImageFiles
from fastsimsiam.storage.open import open_split
from fastsimsiam.system.resources import num_cores
from fastsimsiam.train.trainer import Trainer

_BATCH_SIZES = (512, 384, 256, 128)
_STEPS_OF_AN_EPOCH = 600
_BLOCKS, _BLOCK_STEPS = 4, 8
_PROFILED = 3
_SHOWN_KERNELS = 120
CLASSES = (
    ("compiled reductions", r"^triton_(red|per)"),
    ("compiled elementwise", r"^triton_poi"),
    ("compiled products", r"^triton_(tem|mm|conv)"),
    ("1x1 convolutions with BatchNorm", r"^(conv_moments|join|masked_gradient|products)_kernel"),
    ("color kernels", r"^(gray_sums|plain|blurred)_kernel"),
    ("copies", r"memcpy|memset"),
    ("optimizer", r"multi_tensor|fused_sgd|fusedsgd"),
    ("convolutions: wgrad", r"wgrad|bwd_filter|convolvenhwc.*dw"),
    ("convolutions: dgrad", r"dgrad|bwd_data"),
    ("convolutions: forward", r"fprop|conv|implicit|cudnn.*(hmma|gmma)|nhwckrsc"),
    ("products", r"gemm|cutlass|nvjet|cublas|splitk"),
    ("norm: fused sums", r"^(moments|gradient_sums)_kernel"),
    ("stem", r"pool_kernel|pool_gradient_kernel|space_to_depth"),
    ("norm: ATen", r"batch_norm"),
)
"""Kinds of kernels, and what their names contain; the first that fits counts."""


def config_of(bench: Bench, compiled: CompileName, fuse: FuseName) -> Config:
    """ImageNet's recipe, without evaluation and checkpoints."""
    args = bench.args
    return replace(
        catalogue.recipe("imagenet-100ep"),
        data=photographs(args),
        arch=args.arch,
        image_size=args.image_size,
        batch_size=bench.batch_size,
        loader="cpu",
        device=args.device,
        precision="bf16" if args.device == "cuda" else "fp32",
        workers=args.workers,
        compile=compiled,
        fuse=fuse,
        knn=KnnConfig(every_epochs=0),
        checkpoint=CheckpointConfig(every_epochs=1e6),
    )


def attempts(bench: Bench) -> list[tuple[CompileName, FuseName]]:
    """What to compile and to fuse, in the order of preference."""
    names: list[CompileName] = ["step", "color", "off"]
    fuses: list[FuseName] = [bench.args.fuse, "stem", "off"]
    steps = [("step", fuse) for fuse in dict.fromkeys(fuses)]
    whole: list[Any] = [*steps, ("color", "off"), ("off", "off")]
    return [pair for pair in whole if names.index(pair[0]) >= names.index(bench.args.compile)]


def build(bench: Bench) -> Result:
    """Builds and compiles the trainer; falls back to less of both, and to smaller batches."""
    tried: list[dict[str, Any]] = []
    sizes = [bench.batch_size, *[size for size in _BATCH_SIZES if size < bench.batch_size]]
    for compiled, fuse in attempts(bench):
        for size in sizes:
            bench.batch_size, bench.compiled, bench.fuse = size, compiled, fuse
            about = {"compiled": compiled, "fuse": fuse, "batch_size": size}
            started = time.perf_counter()
            try:
                bench.trainer = _built(bench, config_of(bench, compiled, fuse))
                seconds = time.perf_counter() - started
                memory = {"memory_mib": _memory(bench)}
                return {**about, "first_step_seconds": seconds, **memory, "tried": tried} | {
                    "exactness": exactness(bench.trainer, bench.held)
                }
            except torch.OutOfMemoryError as error:
                tried.append({**about, "error": str(error)})
                _release(bench)
            except OutOfTimeError:
                raise
            except Exception as error:
                traceback.print_exc()
                tried.append({**about, "error": "".join(traceback.format_exception(error))})
                _release(bench)
                break
    raise RuntimeError(f"nothing trains: {tried}")


def _built(bench: Bench, config: Config) -> Trainer:
    storage = open_split(config.data, "train")
    assert isinstance(storage, ImageFiles)
    # One epoch holds all steps of a measurement.
    storage = repeated(storage, _STEPS_OF_AN_EPOCH * bench.batch_size)
    trainer = bench.stack.enter_context(trainer_of(config, storage))
    bench.notes["storage"] = storage
    trainer.method.train()
    batches = batches_of(trainer)
    bench.held = next(batches)
    batches.close()
    for _ in range(2):
        loss = trainer.train_on([bench.held], lr=SMALL_LR)["loss"]
    wait_for(trainer.device)
    assert torch.isfinite(loss), f"the loss is {loss.item()}"
    return trainer


def _release(bench: Bench) -> None:
    bench.trainer = bench.held = None
    bench.stack.close()
    torch.compiler.reset()
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()


def _memory(bench: Bench) -> float | None:
    gpu = bench.device.type == "cuda"
    return torch.cuda.max_memory_allocated(bench.device) / 2**20 if gpu else None


def _ready(bench: Bench) -> Trainer:
    assert bench.trainer is not None
    return bench.trainer


def _one_step(bench: Bench) -> Callable[[], object]:
    trainer, held = _ready(bench), bench.held
    assert held is not None
    return lambda: trainer.train_on([held], lr=SMALL_LR)


def step(bench: Bench) -> Result:
    """Steps back to back on a batch that is on the device; first some that must not wait for it."""
    run = _one_step(bench)
    waits = None
    if bench.device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        with torch._dynamo.config.patch(error_on_recompile=True):
            for _ in range(4):
                run()
    except Exception:
        waits = traceback.format_exc()
        print(waits, flush=True)
    finally:
        if bench.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    blocks = [timed(run, bench.device, _BLOCK_STEPS) for _ in range(_BLOCKS)]
    # The host's part: how long it takes to queue a step.
    wait_for(bench.device)
    started = time.perf_counter()
    for _ in range(_BLOCK_STEPS):
        run()
    queued = (time.perf_counter() - started) * 1e3 / _BLOCK_STEPS
    wait_for(bench.device)
    best = sorted(blocks)[len(blocks) // 2]
    bench.notes["step_ms"] = best
    return {
        "compiled": bench.compiled,
        "fuse": bench.fuse,
        "batch_size": bench.batch_size,
        "waits_or_recompiles": waits,
        "step_ms": blocks,
        "host_ms": queued,
        "images_per_second": bench.batch_size / best * 1e3,
        "memory_mib": _memory(bench),
    }


def kind_of(kernel: str) -> str:
    """The kind of a kernel, by its name."""
    name = kernel.lower()
    return next((kind for kind, words in CLASSES if re.search(words, name)), "other")


def activities(device: torch.device) -> list[torch.profiler.ProfilerActivity]:
    """What the profiler records."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    return [*kinds, torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else kinds


def kernels_of(profiler: Any, steps: int) -> list[dict[str, Any]]:
    """Milliseconds and calls of each kernel per step, the most expensive first."""
    rows = []
    for event in profiler.key_averages():
        on_gpu = event.device_type.name == "CUDA" and not event.is_user_annotation
        if on_gpu and event.self_device_time_total:
            rows.append(
                {
                    "kernel": event.key[:200],
                    "kind": kind_of(event.key),
                    "ms": event.self_device_time_total / 1e3 / steps,
                    "calls": event.count / steps,
                }
            )
    return sorted(rows, key=lambda row: -row["ms"])


def profile(bench: Bench) -> Result:
    """Where the time of a step goes, kernel by kernel."""
    run = _one_step(bench)
    run()
    wait_for(bench.device)
    with torch.profiler.profile(activities=activities(bench.device)) as profiler:
        started = time.perf_counter()
        for _ in range(_PROFILED):
            run()
        wait_for(bench.device)
        wall = (time.perf_counter() - started) * 1e3 / _PROFILED
    rows = kernels_of(profiler, _PROFILED)
    kinds: dict[str, float] = {}
    for row in rows:
        kinds[row["kind"]] = kinds.get(row["kind"], 0.0) + row["ms"]
    busy = sum(kinds.values())
    return {
        "wall_ms": wall,
        "busy_ms": busy,
        "kinds_ms": dict(sorted(kinds.items(), key=lambda item: -item[1])),
        "kernels": rows[:_SHOWN_KERNELS],
        "num_kernels": sum(row["calls"] for row in rows),
    }


def color(bench: Bench) -> Result:
    """The photometric part by itself, compiled; and by the fused kernel."""
    from fastsimsiam.augment.photometric import Photometric

    trainer, held = _ready(bench), bench.held
    assert held is not None
    batch = held
    config = trainer.config
    sizes = trainer.plan.view_sizes
    found: Result = {}
    views: dict[str, tuple[torch.Tensor, ...]] = {}
    for name, options in (("compiled", {}), ("kernel", {"fused": True})):
        try:
            made = Photometric(
                config.views, sizes, torch.bfloat16, normalize=config.normalize, **options
            )
            function = torch.compile(made, fullgraph=True, dynamic=False)
            with torch.no_grad():
                views[name] = function(batch.crops, batch.photometric)
                found[name] = timed(
                    lambda f=function: f(batch.crops, batch.photometric), bench.device, 20
                )
        except OutOfTimeError:
            raise
        except Exception:
            found[f"{name}_failed"] = traceback.format_exc()
    if len(views) == 2:
        pairs = list(zip(views["kernel"], views["compiled"], strict=True))
        found["largest_difference"] = max(
            (a.float() - b.float()).abs().max().item() for a, b in pairs
        )
        found["mean_difference"] = (
            sum((a.float() - b.float()).abs().mean().item() for a, b in pairs) / 2
        )
    return {"images": bench.batch_size, **found}


def loaders(bench: Bench) -> Result:
    """Training end to end from JPEG, one loader after the other under the same compiled step."""
    cores = bench.args.workers or num_cores()
    fewer = max(1, cores * 3 // 4)
    candidates: list[tuple[str, str, int, CpuConfig]] = [
        ("cpu", "cpu", cores, CpuConfig()),
        (f"cpu, {fewer} workers", "cpu", fewer, CpuConfig()),
        ("cpu, threads of one process", "cpu", cores, CpuConfig(processes=0)),
        ("cpu, crops on the device", "cpu", cores, CpuConfig(crops="device")),
        ("nvjpeg", "nvjpeg", cores, CpuConfig()),
    ]
    trainer = _ready(bench)
    given = trainer.loader
    rows: dict[str, Any] = {}
    try:
        for label, name, workers, options in candidates:
            if bench.left < 30:
                break
            try:
                rows[label] = _with_loader(bench, name, workers, options)
            except OutOfTimeError:
                raise
            except Exception as error:
                traceback.print_exc()
                rows[label] = {"failed": f"{type(error).__name__}: {error}"}
            print(label, {k: v for k, v in rows[label].items() if "samples" not in k}, flush=True)
            # A limit must not take what is there already.
            bench.notes["loaders"] = rows
    except OutOfTimeError:
        rows["out of time"] = True
    finally:
        trainer.loader = given
    return {"step_ms": bench.notes.get("step_ms"), "fuse": bench.fuse, "loaders": rows}


def _with_loader(bench: Bench, name: str, workers: int, options: CpuConfig) -> Result:
    trainer = _ready(bench)
    loader_options = LoaderOptions(
        device=trainer.device,
        workers=workers,
        on_bad_image=trainer.config.on_bad_image,
        gray16_max=trainer.config.gray16_max,
        check_images=False,
    )
    loader = build_loader(name, bench.notes["storage"], loader_options, cpu=options)
    try:
        trainer.loader = loader
        alone = measure_loader(trainer, 3.0)
        milliseconds = bench.notes.get("step_ms", 200.0)
        steps = max(16, min(_STEPS_OF_AN_EPOCH // 2, int(8000 / milliseconds)))
        trainer.step = 0
        trainer.recorder.history.clear()
        started, busy = time.perf_counter(), time.process_time()
        rate, data_wait = measure_train(trainer, steps)
        cores = (time.process_time() - busy) / (time.perf_counter() - started)
    finally:
        loader.close()
    step_rate = trainer.plan.batch_size / milliseconds * 1e3
    return {
        "workers": workers,
        "loader_images_per_second": alone.images_per_second,
        "loader_samples": [round(sample) for sample in alone.samples],
        "train_images_per_second": rate.images_per_second,
        "train_samples": [round(sample) for sample in rate.samples],
        "data_wait": data_wait,
        "cores": cores,
        "share_of_step": rate.images_per_second / step_rate,
        "steps": steps,
    }
