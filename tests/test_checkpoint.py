"""Checkpoints: what is good decides, damage is noticed and set aside, nothing in a file is run."""

import argparse
import io
import os
import re
import resource
import shlex
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from conftest import save_run
from damage_checkpoints import damage, intact

from fastsimsiam.config.run import CheckpointConfig, Config
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.pretrained import load_pretrained
from fastsimsiam.runs.archive import DamagedCheckpointError, read_stored, write_atomically
from fastsimsiam.runs.checkpoint import Checkpoint, CheckpointStore, load, newest_good, save
from fastsimsiam.train.pretrain import pretrain


@pytest.fixture
def state(tmp_path: Path) -> Checkpoint:
    """A small checkpoint of a run, at step 7."""
    intact(tmp_path / "step-00000007.pt")
    return load(tmp_path / "step-00000007.pt")


def flip_in_weights(path: Path) -> None:
    """Flips a bit in the middle of the largest record, which is a tensor's."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
        value = archive.read(largest)
    data = bytearray(path.read_bytes())
    data[data.index(value) + len(value) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path)  # of a finer clock than that of writes


def rewritten(path: Path, **changed: Any) -> None:
    """Writes a checkpoint's file again with other values."""
    stored = torch.load(path, weights_only=True)
    torch.save(stored | changed, path)


def accept(path: Path, checkpoint: Checkpoint) -> None:
    """A check of `CheckpointStore.resume` that everything passes."""


def test_a_flipped_bit_in_the_weights_is_noticed(tmp_path: Path, state: Checkpoint) -> None:
    path = tmp_path / "step-00000007.pt"
    flip_in_weights(path)
    torch.load(path, weights_only=True)  # torch alone does not notice
    with pytest.raises(
        DamagedCheckpointError, match=r"00007\.pt is damaged: .* content has changed"
    ):
        load(path)


def test_a_run_resumed_from_an_older_checkpoint_keeps_the_good_ones(tiny_config: Config) -> None:
    """With `keep` 1 too, and all who read the run take the newest good one."""
    config = replace(
        tiny_config,
        checkpoint=CheckpointConfig(every_epochs=0.5, min_minutes=0.0, keep=2),
        max_steps=9,
    )
    pretrain(config)
    folder = config.out / "checkpoints"
    six, nine = CheckpointStore(config.out, 1).paths()
    assert (six.name, nine.name) == ("step-00000006.pt", "step-00000009.pt")
    flip_in_weights(nine)
    (folder / "step-00000009.pt.damaged").write_text("of another time")
    before = sorted(os.listdir(folder))
    loaded = load_pretrained(config.out)
    assert loaded.step == 6
    assert f"{nine} is damaged" in loaded.notes[0]
    assert "step-00000006.pt in its place" in loaded.notes[0]
    assert sorted(os.listdir(folder)) == before
    keep_one = CheckpointConfig(every_epochs=10.0, min_minutes=0.0, keep=1)
    summary = pretrain(replace(config, checkpoint=keep_one, max_steps=8), resume=True)
    assert summary.checkpoint == folder / "step-00000008.pt"
    assert sorted(os.listdir(folder)) == [
        "step-00000008.pt",
        "step-00000009.pt.damaged",
        "step-00000009.pt.damaged2",
    ]
    assert (folder / "step-00000009.pt.damaged").read_text() == "of another time"
    assert load_pretrained(config.out).step == 8
    log = (config.out / "log.txt").read_text()
    assert f"WARNING: {nine} is damaged" in log
    assert "set aside as step-00000009.pt.damaged2; falling back to step-00000006.pt" in log


def test_keep_counts_good_files_and_removes_none_before_the_new_one_is_there(
    tmp_path: Path, state: Checkpoint
) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    said: list[str] = []
    store.say = said.append
    paths = [store.save(replace(state, step=step)) for step in (1, 2)]
    flip_in_weights(paths[1])
    store.save(replace(state, step=3))
    assert [path.name for path in store.paths()] == ["step-00000001.pt", "step-00000003.pt"]
    assert said == [f"WARNING: {paths[1]} is damaged: set aside as step-00000002.pt.damaged"]
    # A file that can no longer be written: a folder is in its place.
    (tmp_path / "checkpoints" / "step-00000004.pt").mkdir()
    with pytest.raises(UserError, match=r"checkpoint .*00004\.pt is a folder, not a file"):
        store.save(replace(state, step=4))
    assert [path.name for path in store.paths()] == ["step-00000001.pt", "step-00000003.pt"]


def test_steps_of_nine_digits_are_newer_than_those_of_eight(
    tmp_path: Path, state: Checkpoint
) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (3, 99_999_999, 100_000_000):
        store.save(replace(state, step=step))
    assert [path.name for path in store.paths()] == ["step-99999999.pt", "step-100000000.pt"]
    assert newest_good(tmp_path, print, load)[1].step == 100_000_000


def test_a_step_that_is_not_that_of_the_name_is_damage(tmp_path: Path, state: Checkpoint) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    good = store.save(replace(state, step=5))
    store.save(replace(state, step=6)).rename(good.with_name("step-00000009.pt"))
    said: list[str] = []
    assert store.resume(said.append, accept) == good
    assert "step-00000009.pt is damaged: it holds step 6, not the step of its name" in said[0]


def test_another_version_is_named_and_left_as_it_is(tmp_path: Path, state: Checkpoint) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    store.save(state)
    newest = store.save(replace(state, step=8))
    rewritten(newest, format=2)
    for read in (
        lambda: store.resume(print, accept),
        lambda: newest_good(tmp_path, print, load),
        lambda: load_pretrained(tmp_path),
    ):
        with pytest.raises(UserError, match=r"00008\.pt .*format 2.* reads format 1") as caught:
            read()
        assert "damaged" not in str(caught.value)
    assert len(store.paths()) == 2


def test_no_file_is_touched_if_all_are_damaged(tmp_path: Path, state: Checkpoint) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    for path in [store.save(replace(state, step=step)) for step in (1, 2)]:
        flip_in_weights(path)
    with pytest.raises(UserError, match="all checkpoints in .* are damaged"):
        store.resume(print, accept)
    with pytest.raises(UserError, match="all checkpoints in .* are damaged"):
        newest_good(tmp_path, print, load)
    assert len(store.paths()) == 2
    assert CheckpointStore(tmp_path, keep=3).newest_path() is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("nan", r"weights are not finite: backbone\.conv1\.weight"),
        ("missing", r"lacks backbone\.conv1\.weight"),
        ("shape", r"backbone\.conv1\.weight is \(1,\), not \("),
        ("momentum", "optimizer's state is not that of its network"),
        ("step", "no run has such a step"),
    ],
)
def test_a_run_falls_back_from_weights_that_it_cannot_use(
    tiny_config: Config, change: str, reason: str
) -> None:
    config = replace(tiny_config, max_steps=2, arch="micro_resnet")
    pretrain(config)
    (path,) = CheckpointStore(config.out, 1).paths()
    newer = path.with_name("step-00000003.pt")
    stored = torch.load(path, weights_only=True)
    weights, name = stored["method"], "backbone.conv1.weight"
    if change == "nan":
        weights[name][0, 0] = torch.nan
    elif change == "missing":
        del weights[name]
    elif change == "shape":
        weights[name] = torch.zeros(1)
    elif change == "momentum":
        stored["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(1)
    torch.save(stored | {"step": "3" if change == "step" else 3}, newer)
    assert pretrain(replace(config, max_steps=4), resume=True).steps == 4
    log = (config.out / "log.txt").read_text()
    assert re.search(f"WARNING: .*00003.pt is damaged: .*{reason}", log)
    assert "resumed at step 2" in log
    assert newer.with_name("step-00000003.pt.damaged").exists()


def test_a_folder_or_file_that_cannot_be_read_is_no_reason_to_start_again(
    tmp_path: Path, state: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path, keep=3)
    path = store.save(state)

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", refuse)
        with pytest.raises(
            UserError, match=r"00007\.pt cannot be read \(Permission denied\)"
        ) as one:
            store.resume(print, accept)
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        with pytest.raises(UserError, match=r"checkpoints cannot be read \(Permission") as other:
            store.paths()
    for caught in (one, other):
        assert "make it readable" in str(caught.value)
        assert "start" not in str(caught.value)
    assert path.exists()


def test_a_full_disk_is_told_with_its_reason_and_loses_nothing(
    tmp_path: Path, state: Checkpoint
) -> None:
    """A limit on the size of files stands for the disk; torch alone tells a position."""
    store = CheckpointStore(tmp_path, keep=1)
    store.save(state)
    state.method["large"] = torch.zeros(1 << 18)  # larger than what Python keeps to write later
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    try:
        with pytest.raises(UserError) as caught:
            store.save(replace(state, step=8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert re.fullmatch(
        r"cannot write checkpoint .*step-00000008\.pt \(File too large\): raise the limit of file "
        r"sizes \(ulimit -f\), then go on with --resume",
        str(caught.value),
    )
    assert os.listdir(tmp_path / "checkpoints") == ["step-00000007.pt"]
    assert newest_good(tmp_path, print, load)[1].step == 7


def test_what_cannot_be_read_again_does_not_replace_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.pt"
    write_atomically(path, {"a": torch.zeros(3)})
    original = torch.save

    def spoil(content: object, file: io.BufferedWriter) -> None:
        memory = io.BytesIO()
        original(content, memory)
        file.write(memory.getvalue()[:-100])

    monkeypatch.setattr(torch, "save", spoil)
    with pytest.raises(UserError, match="cannot be read again"):
        write_atomically(path, {"a": torch.ones(3)})
    assert os.listdir(tmp_path) == ["x.pt"]
    assert read_stored(path)["a"].sum() == 0


def test_harmless_objects_are_read_without_their_classes(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    arrays = {
        "float": np.arange(6.0, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "big-endian": np.arange(3, dtype=">i4"),
        "empty": np.zeros((0, 2)),
    }
    torch.save(
        {
            "best": np.float64(61.5),
            "epoch": np.int64(3),
            "args": argparse.Namespace(lr=0.1, out=Path("/tmp")),
            "arrays": arrays,
            "weight": torch.ones(2),
        },
        path,
    )
    stored = read_stored(path)
    assert (stored["best"], stored["epoch"]) == (61.5, 3)
    for name, array in arrays.items():
        np.testing.assert_array_equal(stored["arrays"][name].numpy(), array)
    assert not isinstance(stored["args"], argparse.Namespace)
    assert stored["weight"].tolist() == [1, 1]
    torch.save({"objects": np.array([1, "a"], object)}, path)
    with pytest.raises(DamagedCheckpointError):
        read_stored(path)


class Settings:
    """A class of another package."""


@pytest.mark.parametrize("kind", ["module", "wrapped module", "wrapped state", "state"])
def test_the_lines_that_take_the_weights_out_of_a_refused_file_work(
    tmp_path: Path, kind: str
) -> None:
    network = torchvision.models.squeezenet1_1()
    weights = network.state_dict()
    content = {
        "module": network,
        "wrapped module": {"epoch": 3, "model": network},
        "wrapped state": {"args": Settings(), "state_dict": weights},
        "state": {**weights, "note": Settings()},
    }[kind]
    path = tmp_path / "it's $HOME.pth.tar"
    torch.save(content, path)
    with pytest.raises(UserError, match="holds objects of") as caught:
        read_stored(path)
    assert not isinstance(caught.value, DamagedCheckpointError)
    named = "torchvision.models.squeezenet.SqueezeNet" if "module" in kind else ".Settings"
    assert named in str(caught.value)
    command = str(caught.value).partition("take the weights out of it: ")[2]
    program, option, code = shlex.split(command)  # as a shell does
    assert (program, option) == ("python", "-c")
    exec(code, {})
    taken = read_stored(tmp_path / "it's $HOME-weights.pth")
    assert taken.keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in taken.items())


def test_a_file_that_claims_more_than_it_has_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"a": torch.zeros(64)}, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in records if name.endswith("data.pkl"))
    # The storage and the tensor of 64 numbers say that they have 80, or 2**31 - 1.
    for number in (b"K\x50", b"J\xff\xff\xff\x7f"):
        lying = records[pickled].replace(b"K@", number)
        assert lying != records[pickled]
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in (records | {pickled: lying}).items():
                archive.writestr(name, content)
        with pytest.raises(DamagedCheckpointError):
            read_stored(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(50_000_000))
    with pytest.raises(DamagedCheckpointError, match="compressed archive"):
        read_stored(path)


def test_tensors_that_share_memory_still_do(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    torch.save(
        {"whole": whole, "rows": whole.view(3, 4), "none": torch.zeros(0)}, tmp_path / "x.pt"
    )
    stored = read_stored(tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes(b"")  # nothing is left mapped
    stored["whole"][5] = -1
    assert stored["rows"][1, 1] == -1
    assert stored["none"].shape == (0,)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"<!DOCTYPE html><html>Quota exceeded</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"", "is empty"),
        (b"PK\x03\x04", "cut off"),
    ],
)
def test_other_files_are_told_for_what_they_are(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=what):
        read_stored(tmp_path / "x.pth")


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(3)}, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    torch.save({"a": torch.ones(3)}, tmp_path / "y.pt", _use_new_zipfile_serialization=False)
    for name in ("x.pt", "y.pt"):
        assert read_stored(tmp_path / name)["a"].sum() == 3


def test_damaged_and_forged_checkpoints_are_one_line_each(tmp_path: Path) -> None:
    counts = damage(tmp_path, seed=0, number=60)
    assert sum(counts.values()) == 60
    assert counts["flip", "damaged"] > 5


def test_neither_a_pipe_nor_a_folder_is_a_checkpoint(tmp_path: Path, state: Checkpoint) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    os.mkfifo(folder / "step-00000009.pt")
    (folder / "step-00000010.pt").mkdir()
    (folder / "step-٠٠٠٠٠٠١١.pt").write_text("Arabic digits")
    shutil.copy(tmp_path / "step-00000007.pt", folder)
    assert [path.name for path in CheckpointStore(tmp_path, 1).paths()] == ["step-00000007.pt"]
    with pytest.raises(UserError, match="there is no checkpoint"):
        load(folder / "step-00000009.pt")


def test_the_checksums_of_a_file_are_written_whatever_torch_is_told(
    tmp_path: Path, state: Checkpoint
) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        save(tmp_path / "step-00000007.pt", state)
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(tmp_path / "step-00000007.pt") as archive:
        assert all(record.CRC for record in archive.infolist() if record.file_size > 100)


def test_resuming_removes_what_a_process_that_died_had_still_to_remove(tiny_config: Config) -> None:
    paths = save_run(tiny_config, (1, 2, 3))
    store = CheckpointStore(tiny_config.out, keep=2)
    assert store.resume(print, lambda path, checkpoint: None) == paths[-1]
    assert store.paths() == paths[1:]
