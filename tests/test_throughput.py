"""Costs that must not grow, as ratios (`make gate`); planted slow-downs make the checks fail."""

import itertools
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from conftest import CPU, open_with_pil
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gate import best_of, cost_ratio, floor_of, thresholds
from fastsimsiam.augment.photometric import Photometric
from fastsimsiam.config.views import ViewSpec
from fastsimsiam.doctor.measure import batches_of
from fastsimsiam.doctor.synthetic import photograph
from fastsimsiam.loaders.bad_images import BadImagePolicy
from fastsimsiam.loaders.base import Batch, LoaderOptions, assemble
from fastsimsiam.loaders.cpu_loader import cpu_loader
from fastsimsiam.loaders.decode import read_rgb
from fastsimsiam.loaders.host_crop import crop_views
from fastsimsiam.loaders.reference_loader import crop_with_pil
from fastsimsiam.plan.batches import TrainPlan
from fastsimsiam.recipes import catalogue
from fastsimsiam.runs.checkpoint import CheckpointStore
from fastsimsiam.runs.recorder import Recorder
from fastsimsiam.storage.base import Storage
from fastsimsiam.storage.class_folder import open_split
from fastsimsiam.system.compiler import why_compile_fails
from fastsimsiam.train.build import build_trainer
from fastsimsiam.train.distributed import World
from fastsimsiam.train.trainer import Trainer
from fastsimsiam.train.window import Window

pytestmark = pytest.mark.throughput
LIMITS = thresholds()
IMAGES = 60


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """JPEGs of the size and noise of photographs."""
    folder = tmp_path_factory.mktemp("gate") / "k"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        photograph(rng, 375, 500).save(folder / f"{number:02d}.jpg", quality=90)
    return open_split(folder.parent, "train")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that spin while they wait would count as work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def check(name: str, measure: Callable[[], float]) -> None:
    """Compares a ratio with its limit."""
    limit = LIMITS[name].limit
    ratio = best_of(measure, limit)
    print(f"{name}: {ratio:.3f}, the limit is {limit}")
    assert ratio < limit


def plan_of(storage: Storage) -> TrainPlan:
    """A plan of two 224-pixel views."""
    return TrainPlan(
        label=storage.label,
        sizes=storage.sizes,
        seed=0,
        specs=(ViewSpec(), ViewSpec()),
        image_size=224,
        batch_size=IMAGES // 2,
    )


def cpu_to(storage: Storage, baseline: Callable[[int], object], rounds: int) -> float:
    """Time of an image in the loader cpu (read, decode, two crops into the batch), over `baseline`."""
    plan = plan_of(storage)
    boxes = plan.rows(0, np.arange(IMAGES)).views.box
    out = np.empty((IMAGES, 2, 224, 224, 3), np.uint8)
    with closing(cpu_loader(storage, LoaderOptions(device=CPU, workers=1))) as loader:

        def image(index: int) -> None:
            crop_views(loader._frame(index), boxes[index], out[index])

        for index in range(IMAGES):  # warms up
            image(index)
        return cost_ratio(image, baseline, items=IMAGES, rounds=rounds)


def decoder_of(storage: Storage) -> Callable[[int], object]:
    """A function that decodes an image by libjpeg-turbo, from memory to memory."""
    data = [bytes(storage.read(index)) for index in range(IMAGES)]
    buffer = np.empty((375, 500, 3), np.uint8)
    return lambda index: simplejpeg.decode_jpeg(data[index], "RGB", buffer=buffer)


def frame_to_decode(storage: Storage) -> float:
    """Time of reading and decoding an image in the loader cpu, over libjpeg-turbo alone."""
    with closing(cpu_loader(storage, LoaderOptions(device=CPU, workers=1))) as loader:
        return cost_ratio(loader._frame, decoder_of(storage), items=IMAGES, rounds=12)


def test_frame_to_decode(storage: Storage) -> None:
    check("frame_to_decode", lambda: frame_to_decode(storage))


def fresh_memory_to_frame(storage: Storage) -> float:
    """Bytes allocated per image, over its frame: counts a copy, however fast it is."""
    with closing(cpu_loader(storage, LoaderOptions(device=CPU, workers=1))) as loader:
        for index in range(IMAGES):  # allocates the buffers that are reused
            loader._frame(index)
        tracemalloc.start()
        try:
            allocated = 0
            for index in range(IMAGES):
                tracemalloc.reset_peak()
                held = tracemalloc.get_traced_memory()[0]
                loader._frame(index)
                allocated += tracemalloc.get_traced_memory()[1] - held
        finally:
            tracemalloc.stop()
    return allocated / (3 * int(storage.sizes.astype(np.int64).prod(axis=1).sum()))


def test_fresh_memory_to_frame(storage: Storage) -> None:
    check("fresh_memory_to_frame", lambda: fresh_memory_to_frame(storage))


def test_cpu_to_decode(storage: Storage) -> None:
    check("cpu_to_decode", lambda: cpu_to(storage, decoder_of(storage), 8))


def test_cpu_to_reference(storage: Storage) -> None:
    boxes = plan_of(storage).rows(0, np.arange(IMAGES)).views.box

    def reference(index: int) -> None:
        image = open_with_pil(storage.file_of(index))
        for view in range(2):
            np.asarray(crop_with_pil(image, boxes[index, view].tolist(), 224))

    check("cpu_to_reference", lambda: cpu_to(storage, reference, 4))


@pytest.mark.parametrize(
    ("planted", "name"),
    [("a copy of each image", "fresh_memory_to_frame"), ("a second decode", "frame_to_decode")],
)
def test_a_planted_slow_down_is_caught(
    planted: str, name: str, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slower(_: BadImagePolicy, storage: Storage, index: int) -> np.ndarray:
        if planted == "a second decode":
            read_rgb(storage, index)
            return read_rgb(storage, index)
        return read_rgb(storage, index).copy()

    monkeypatch.setattr(BadImagePolicy, "read_rgb", slower)
    measure = {"fresh_memory_to_frame": fresh_memory_to_frame, "frame_to_decode": frame_to_decode}
    limit = LIMITS[name].limit
    ratio = best_of(lambda: measure[name](storage), limit)
    print(f"{name} with {planted}: {ratio:.3f}, the limit is {limit}")
    assert ratio > limit


@pytest.mark.skipif(
    why_compile_fails("cpu") is not None, reason=f"needs {why_compile_fails('cpu')}"
)
def test_compiled_color_to_eager() -> None:
    specs = catalogue.recipe("imagenet-100ep").views
    sizes = np.full((64, 2), 300, np.int32)
    plan = TrainPlan(
        label=np.zeros(64, np.int64), sizes=sizes, seed=0, specs=specs, image_size=64, batch_size=64
    )
    crops = torch.randint(0, 256, (64, 2, 64, 64, 3), dtype=torch.uint8)
    batch = assemble(plan.batch(0, 0), (crops,))
    compiled, eager = Photometric(specs, (64, 64)), Photometric(specs, (64, 64))
    torch._dynamo.reset()
    compiled.compile_alone()
    compiled(batch.crops, batch.photometric)

    def measure() -> float:
        return cost_ratio(
            lambda _: compiled(batch.crops, batch.photometric),
            lambda _: eager(batch.crops, batch.photometric),
            items=1,
            rounds=20,
        )

    check("compiled_color_to_eager", measure)


@contextmanager
def trainer_on(storage: Storage, out: Path) -> Iterator[tuple[Trainer, Window]]:
    """A trainer on the CPU, between two log steps."""
    config = replace(
        catalogue.recipe("imagenet-100ep"),
        arch="resnet18",
        image_size=64,
        batch_size=IMAGES // 3,
        out=out,
        precision="fp32",
    )
    recorder = Recorder(out, active=False)
    with (
        closing(recorder),
        closing(cpu_loader(storage, LoaderOptions(device=CPU, workers=1))) as loader,
    ):
        trainer = build_trainer(
            config,
            storage,
            loader,
            evaluators=[],
            store=CheckpointStore(out, 1),
            recorder=recorder,
            device=CPU,
            dtype=torch.float32,
            compiled="off",
            world=World(),
        )
        trainer.method.train()
        trainer._first_bad_step = torch.full((), -1, dtype=torch.int64)
        yield trainer, Window(device=CPU)


def train_to_parts(storage: Storage, out: Path) -> float:
    """Time of a training step with its batch, over a batch and a step separately."""
    with trainer_on(storage, out) as (trainer, window):
        (held,) = itertools.islice(trainer.loader.iterate(trainer.plan), 1)
        batches, alone = batches_of(trainer), batches_of(trainer)

        def together(_: int) -> None:
            trainer._step(batches, window)

        def apart(_: int) -> None:
            next(alone)
            trainer.train_on([held])

        return cost_ratio(together, apart, items=1, rounds=20)


def test_train_to_parts(storage: Storage, tmp_path: Path) -> None:
    check("train_to_parts", lambda: train_to_parts(storage, tmp_path))


class HostReads(TorchDispatchMode):
    """Counts the host's reads of tensors: each waits for all queued work of a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def host_reads_per_step(storage: Storage, out: Path) -> float:
    """Reads of the training loop beyond those of the step: on a CPU the optimizer reads the lr."""
    with trainer_on(storage, out) as (trainer, window):
        batches = batches_of(trainer)
        held = next(batches)
        with HostReads() as together:
            for _ in range(4):
                trainer._step(batches, window)
        with HostReads() as alone:
            for _ in range(4):
                trainer.train_on([held])
    return (together.count - alone.count) / 4


def test_host_reads_per_step(storage: Storage, tmp_path: Path) -> None:
    check("host_reads_per_step", lambda: host_reads_per_step(storage, tmp_path))


@pytest.mark.parametrize("planted", ["the loss is read", "the loss is looked at"])
def test_a_planted_sync_is_caught(
    planted: str, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer._step

    def synchronous(self: Trainer, batches: Iterator[Batch], window: Window) -> None:
        step(self, batches, window)
        loss = window.sums["loss"]
        if planted == "the loss is read":
            loss.item()
        else:
            assert torch.isfinite(loss)

    monkeypatch.setattr(Trainer, "_step", synchronous)
    reads = host_reads_per_step(storage, tmp_path)
    assert reads == 1
    assert reads > LIMITS["host_reads_per_step"].limit


def test_a_floor_holds_for_its_gpu_alone() -> None:
    content = {"floors": {"NVIDIA X": {"measured": 1000, "floor": 900}}}
    assert floor_of("NVIDIA X", content) == 900
    assert floor_of("NVIDIA Y", content) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_floor_of_this_gpu(tmp_path: Path) -> None:
    name = torch.cuda.get_device_name()
    floor = floor_of(name)
    if floor is None:
        pytest.skip(f"no floor for a {name} in benchmarks/thresholds.toml")
    file = tmp_path / "step.json"
    variant = "compiled-fused-1x1-early"  # what `--fuse auto` takes
    words = ["--only", variant, "--repeats", "1", "--batch-size", "512", "--json", str(file)]
    subprocess.run([sys.executable, "-m", "benchmarks.step", *words], check=True)
    found = json.loads(file.read_text())["variants"][variant]["images_per_second"]
    print(f"compiled step: {found:,.0f} images/s, the floor of a {name} is {floor:,.0f}")
    assert found > floor
