"""Memory between the processes of a loader and the device: what is free, and what fits."""

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CPU
from PIL import Image

from fastsimsiam.config.views import ViewSpec
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.features import center_plan
from fastsimsiam.loaders import frame_processes
from fastsimsiam.loaders.base import Batch, Loader, LoaderOptions
from fastsimsiam.loaders.cpu_loader import cpu_loader, frame_loader
from fastsimsiam.loaders.frame_processes import batch_bytes
from fastsimsiam.loaders.slots import SLOTS, Slots
from fastsimsiam.plan.batches import TrainPlan
from fastsimsiam.storage.base import Storage
from fastsimsiam.storage.class_folder import open_split
from fastsimsiam.system import pinned
from fastsimsiam.system.buffers import BufferPool

KINDS = ["crops", "frames"]


def made(kind: str, storage: Storage, **changes: object) -> Loader:
    """A loader with two processes."""
    options = LoaderOptions(**({"device": CPU, "workers": 2} | changes))
    if kind == "crops":
        return cpu_loader(storage, options, processes=2)
    return frame_loader(storage, options, processes=2)


def plan_of(storage: Storage, batch_size: int = 20, image_size: int = 32) -> TrainPlan:
    """Two views."""
    return TrainPlan(
        label=storage.label,
        sizes=storage.sizes,
        seed=1,
        image_size=image_size,
        specs=(ViewSpec(), ViewSpec()),
        batch_size=batch_size,
    )


def equal(one: list[Batch], two: list[Batch]) -> bool:
    """Whether all tensors are the same."""
    pairs = zip(one, two, strict=True)
    return all(
        torch.equal(a, b)
        for left, right in pairs
        for a, b in zip(left.tensors(), right.tensors(), strict=True)
    )


class Copy:
    """Stands for the event after a copy to a GPU."""

    def __init__(self) -> None:
        self.done = self.waited_for = False

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        self.done = self.waited_for = True


def free(slots: Slots) -> int:
    """How many batches a process could begin now."""
    count = 0
    while slots._free.acquire(block=False):
        count += 1
    for _ in range(count):
        slots._free.release()
    return count


def test_a_slot_is_free_once_the_gpu_has_its_content() -> None:
    slots = Slots(10, CPU, BufferPool(CPU))
    assert free(slots) == SLOTS == 2
    first, second = Copy(), Copy()
    for copied in (first, second):
        slots.acquire(os.getppid())
        slots.free_after(copied)
    slots.poll()
    assert free(slots) == 0
    second.done = True
    slots.poll()
    assert free(slots) == 0  # the first is next in turn
    slots.require_one()  # or the process would wait for a slot, and this one for its batch
    assert free(slots) == 1
    assert first.waited_for
    slots.poll()
    assert free(slots) == 2
    assert not second.waited_for


@pytest.mark.parametrize("end", ["restart", "close"])
def test_memory_that_is_being_copied_is_not_given_away(end: str) -> None:
    slots, copied = Slots(10, CPU, BufferPool(CPU)), Copy()
    slots.acquire(os.getppid())
    slots.free_after(copied)
    getattr(slots, end)()
    assert copied.waited_for
    assert free(slots) == SLOTS


@pytest.mark.parametrize("patience", [0, 1, 5, 10**9])
def test_no_slot_is_written_before_the_gpu_has_copied_it(
    patience: int, class_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copies are made when they have been asked for so many times, or are waited for."""

    class LateCopy(Copy):
        def __init__(self, source: Sequence[torch.Tensor]) -> None:
            super().__init__()
            self.source, self.copies = source, [torch.zeros_like(part) for part in source]
            self.asked = 0

        def query(self) -> bool:
            self.asked += 1
            if self.asked > patience:
                self.synchronize()
            return self.done

        def synchronize(self) -> None:
            super().synchronize()
            for copy, part in zip(self.copies, self.source, strict=True):
                copy.copy_(part)

    def send(slots: Slots, _: int, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        late = LateCopy(parts)
        slots.free_after(late)
        return late.copies

    storage = open_split(class_folders, "train")
    plan = plan_of(storage, batch_size=5)
    with closing(made("crops", storage)) as loader:
        expected = [list(loader.iterate(plan, epoch)) for epoch in range(2)]
    monkeypatch.setattr(Slots, "send", send)
    with closing(made("crops", storage)) as loader:
        batches = [list(loader.iterate(plan, epoch)) for epoch in range(2)]
    assert all(equal(a, b) for a, b in zip(batches, expected, strict=True))


@pytest.mark.parametrize("code", [0, 801])
def test_memory_is_pinned_where_the_system_allows_it(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[object, ...]] = []

    def register(*told: object) -> int:
        calls.append(told)
        return code

    cudart = SimpleNamespace(
        cudaHostRegister=register, cudaHostUnregister=lambda *told: calls.append(told)
    )
    monkeypatch.setattr(pinned, "PIN", True)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    monkeypatch.setattr(torch.cuda, "device", torch.device)
    mapping, memory = pinned.shared_memory(5000)
    assert memory.nbytes == 8192
    assert pinned.pin(mapping, memory, CPU) == (code == 0)
    pinned.unpin(memory, CPU)
    assert calls == [(memory.data_ptr(), 8192, 1), (memory.data_ptr(),)]


def test_what_a_process_writes_is_seen_here() -> None:
    mapping, memory = pinned.shared_memory(1)
    if hasattr(pinned.mmap, "MADV_DOFORK"):
        mapping.madvise(pinned.mmap.MADV_DOFORK)
    child = os.fork()
    if child == 0:
        memory[7] = 9
        os._exit(0)
    os.waitpid(child, 0)
    assert memory[7] == 9


def test_a_slot_holds_nearly_every_batch() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(100, 900, (5000, 2)).astype(np.int32)
    size = batch_bytes(sizes, 64)
    totals = [3 * sizes[rng.integers(0, 5000, 64)].prod(axis=1).sum() for _ in range(300)]
    assert max(totals) <= size <= 1.5 * np.mean(totals)
    assert batch_bytes(np.full((50, 2), 10, np.int32), 4) in (1200, 1203)
    assert batch_bytes(np.zeros((0, 2), np.int32), 4) == 0
    # Not more than a batch of the largest image.
    assert batch_bytes(np.array([[1, 1], [100, 100]], np.int32), 1) <= 30_003


@pytest.mark.parametrize("room", [0, 60_000])
def test_frames_that_do_not_fit_come_nevertheless(
    room: int, class_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_split(class_folders, "train")
    plan = plan_of(storage)
    with closing(made("frames", storage)) as loader:
        expected = list(loader.iterate(plan))
    assert batch_bytes(storage.sizes, 20) > 60_000
    monkeypatch.setattr(frame_processes, "batch_bytes", lambda *_: room)
    with closing(made("frames", storage)) as loader:
        assert equal(list(loader.iterate(plan)), expected)


def test_a_replacement_may_have_another_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "k").mkdir()
    for number in range(20):
        pixels = rng.integers(0, 256, (20 + 9 * number, 300 - 11 * number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "k" / f"{number:02d}.png")
    for number in range(0, 20, 3):
        file = tmp_path / "k" / f"{number:02d}.png"
        file.write_bytes(file.read_bytes()[:-3000])
    storage = open_split(tmp_path, "train")
    plan = plan_of(storage, batch_size=10)
    options = LoaderOptions(device=CPU, workers=2, on_bad_image="skip")
    with closing(frame_loader(storage, options, processes=0)) as loader:
        expected = list(loader.iterate(plan))
    with closing(made("frames", storage, on_bad_image="skip")) as loader:
        assert equal(list(loader.iterate(plan)), expected)
        assert len(loader.bad_images) == 7


@pytest.mark.parametrize("kind", KINDS)
def test_epochs_plans_and_early_ends_with_one_loader(kind: str, class_folders: Path) -> None:
    """Slots grow with the batches; those that nobody has freed are free in the next epoch."""
    storage = open_split(class_folders, "train")
    small, large = plan_of(storage, batch_size=10), plan_of(storage, image_size=64)
    with closing(made(kind, storage)) as loader:
        expected = list(loader.iterate(small))
    with closing(made(kind, storage)) as loader:
        for count in range(4):
            left_early: Iterator[Batch] = loader.iterate(small, 1)
            held = [next(left_early) for _ in range(count)]
            copies = [batch.crops[0].clone() for batch in held]
            del left_early
            gc.collect()
            assert len(list(loader.iterate(large))) == large.num_batches
            assert all(torch.equal(b.crops[0], c) for b, c in zip(held, copies, strict=True))
            assert equal(list(loader.iterate(small)), expected)
        assert list(loader.iterate(small, start=small.num_batches)) == []
        rows = sum(len(batch.index) for batch in loader.iterate(center_plan(storage, 16, 1.0)))
        assert rows == len(storage)


@pytest.mark.parametrize("kind", KINDS)
def test_a_dead_process_is_one_line(kind: str, class_folders: Path) -> None:
    storage = open_split(class_folders, "train")
    plan = replace(plan_of(storage, batch_size=2), image_size=224)
    others = children()  # of earlier tests in this process, as torch's compilers
    with closing(made(kind, storage)) as loader:
        batches = loader.iterate(plan)
        next(batches)
        victim = [child for child in children() if child not in others][1]
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(UserError, match=r"a loader process has died \(signal 9") as caught:
            list(batches)
        assert "\n" not in str(caught.value)
        assert not [child for child in children() if child not in others]
        assert len(list(loader.iterate(plan))) == plan.num_batches
    assert not [thread for thread in threading.enumerate() if thread.name == "ahead"]


def children() -> list[int]:
    """The processes that this one has started."""
    pids = []
    for task in Path("/proc/self/task").iterdir():
        pids += [int(pid) for pid in (task / "children").read_text().split()]
    return sorted(pids)


def test_the_memory_is_given_back(class_folders: Path) -> None:
    code = f"""
import gc, torch
from contextlib import closing
from pathlib import Path
from test_slots import made, plan_of
from fastsimsiam.storage.class_folder import open_split
storage = open_split(Path({str(class_folders)!r}), "train")
def shared(): return sum("(deleted)" in line for line in open("/proc/self/maps"))
before = shared()
for kind in ("crops", "frames"):
    loader = made(kind, storage)
    list(loader.iterate(plan_of(storage)))
    assert shared() > before
    loader.close()
    gc.collect()
    assert shared() == before, (shared(), before)
"""
    folder = str(Path(__file__).parent)
    env = os.environ | {"PYTHONPATH": os.pathsep.join([folder, *sys.path])}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
