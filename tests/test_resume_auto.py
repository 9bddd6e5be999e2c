"""One command line for a job that is started again and again, and runs that have lost images."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_resume import assert_same_state, newest

import fastsimsiam.commands.pretrain
import fastsimsiam.train.pretrain
from fastsimsiam.cli import main
from fastsimsiam.config.run import Config
from fastsimsiam.errors import BadImageError, UserError
from fastsimsiam.runs.recorder import Recorder
from fastsimsiam.storage.base import fingerprint
from fastsimsiam.storage.class_folder import open_split
from fastsimsiam.storage.record import as_recorded, changes, read_record, write_record
from fastsimsiam.train.pretrain import pretrain
from fastsimsiam.train.summary import Summary

KILLED = """
import json, os, sys
sys.path.insert(0, sys.argv[2])
import tiny_backbone
from fastsimsiam.config.stored import from_dict
from fastsimsiam.runs.recorder import Recorder
from fastsimsiam.train.pretrain import pretrain
record = Recorder.record
def record_and_die(self, step, values):
    record(self, step, values)
    if step == int(sys.argv[3]):
        os.kill(os.getpid(), 9)
Recorder.record = record_and_die
pretrain(from_dict(json.loads(sys.argv[1])), resume="auto")
"""


def run_until_killed(config: Config, step: int) -> None:
    """A run with `--resume auto` that is killed when it has logged a step."""
    from fastsimsiam.config.stored import to_dict

    arguments = [json.dumps(to_dict(config)), str(Path(__file__).parent), str(step)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True)
    assert done.returncode == -9, done.stderr


def snapshot(out: Path) -> dict[str, tuple[int, bytes]]:
    """Times and contents of all files."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes())
        for path in out.rglob("*")
        if path.is_file()
    }


def steps(config: Config) -> list[int]:
    """Steps of the lines of metrics.jsonl."""
    lines = (config.out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_a_requeued_job_starts_goes_on_and_ends_with_one_command(
    tiny_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(tiny_config, arch="micro_resnet", log_every=1)
    run_until_killed(config, 2)  # before the first checkpoint, which is at step 3
    assert not list((config.out / "checkpoints").glob("*.pt"))
    run_until_killed(config, 5)
    assert "there is no checkpoint" in (config.out / "log.txt").read_text()
    summary = pretrain(config, resume="auto")
    assert summary.steps == 12
    log = (config.out / "log.txt").read_text()
    assert "--resume auto: the run goes on from step-00000003.pt" in log
    assert "resumed at step 3" in log
    whole = replace(config, out=config.out.with_name("whole"))
    pretrain(whole)
    assert_same_state(newest(config), newest(whole))
    assert steps(config) == list(range(1, 13))
    # Once more: it is finished, and nothing is touched, even if the data are no longer there.
    before = snapshot(config.out)
    capsys.readouterr()
    for resume in (True, "auto"):
        ended = pretrain(replace(config, data=Path("nowhere")), resume=resume)
        assert (ended.steps, ended.signal, ended.checkpoint) == (12, 0, summary.checkpoint)
        assert ended.last == summary.last
        assert f"{config.out} is finished, at step 12" in capsys.readouterr().out
    assert snapshot(config.out) == before
    with pytest.raises(UserError, match="another config: seed"):
        pretrain(replace(config, seed=5), resume="auto")
    assert snapshot(config.out) == before


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_without_resume(
    tiny_config: Config,
) -> None:
    config = replace(tiny_config, arch="micro_resnet", log_every=1, max_steps=3)
    run_until_killed(config, 1)
    assert pretrain(config).steps == 3
    assert steps(config) == [1, 2, 3]


def test_a_run_that_ended_before_its_last_evaluation_is_not_finished(tiny_config: Config) -> None:
    config = replace(tiny_config, arch="micro_resnet", max_steps=3)
    pretrain(config)
    (config.out / "summary.json").unlink()  # it was killed before it wrote one
    assert pretrain(config, resume="auto").steps == 3
    assert json.loads((config.out / "summary.json").read_text())["steps"] == 3
    summary = json.loads((config.out / "summary.json").read_text())
    # A signal in the last evaluation.
    (config.out / "summary.json").write_text(json.dumps(summary | {"signal": 15}))
    assert pretrain(config, resume="auto").steps == 3
    assert json.loads((config.out / "summary.json").read_text())["signal"] == 0
    assert pretrain(replace(config, max_steps=4), resume="auto").steps == 4


def test_resume_of_nothing_says_what_to_pass(tiny_config: Config) -> None:
    with pytest.raises(UserError, match="drop --resume to start, or pass --resume auto"):
        pretrain(tiny_config, resume=True)
    assert pretrain(replace(tiny_config, max_steps=1), resume="auto").steps == 1


def test_a_log_whose_checkpoints_are_gone_is_not_overwritten(tiny_config: Config) -> None:
    config = replace(tiny_config, arch="micro_resnet", max_steps=3)
    pretrain(config)
    shutil.rmtree(config.out / "checkpoints")
    before = (config.out / "metrics.jsonl").read_text()
    for resume in (False, "auto"):
        with pytest.raises(UserError, match="a run whose checkpoints are gone: put them back"):
            pretrain(config, resume=resume)
    assert (config.out / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        ([], False),
        (["--resume"], True),
        (["--resume", "auto"], "auto"),
        (["--resume=auto"], "auto"),
        (["--no-resume"], False),
        (["--resume", "--epochs", "3"], True),
        (["--resume", "auto", "--epochs", "3"], "auto"),
    ],
)
def test_resume_on_the_command_line(
    monkeypatch: pytest.MonkeyPatch, words: list[str], meaning: object
) -> None:
    given: list[object] = []

    def note(config: Config, *, resume: object, profile: int) -> Any:
        given.append(resume)
        return Summary(
            steps=0, signal=0, checkpoint=None, first={}, last={}, bad_images={}, warned_images={}
        )

    monkeypatch.setattr(fastsimsiam.train.pretrain, "pretrain", note)
    assert main(["pretrain", "demo", *words]) == 0
    assert given == [meaning]


def test_another_word_behind_resume_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "demo", "--resume", "always"]) == 2
    assert "--resume is always: give --resume or --resume auto" in capsys.readouterr().err


def lose(file: Path) -> None:
    file.unlink()


def spoil(file: Path) -> None:
    file.write_bytes(b"\0" * 2000)


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])


@pytest.fixture
def own_data(class_folders: Path, tmp_path: Path) -> Path:
    """A copy of the images, for damage."""
    shutil.copytree(class_folders, tmp_path / "data")
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("damage", "loader"), [(lose, "cpu"), (spoil, "cpu"), (cut_off, "cpu"), (lose, "reference")]
)
def test_a_run_that_loses_an_image_goes_on_as_if_it_had_not_been_interrupted(
    tiny_config: Config,
    class_folders: Path,
    own_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
    loader: str,
) -> None:
    """The message of the run is followed: --resume --on-bad-image skip."""
    config = replace(tiny_config, arch="micro_resnet", data=own_data, loader=loader, workers=1)
    file = Path("train") / "bee" / "05.JPEG"
    pretrain(replace(config, max_steps=6))
    damage(own_data / file)
    if damage is cut_off:  # its header is as before
        with pytest.raises(BadImageError, match=r"go on with --resume$"):
            pretrain(config, resume=True)
    else:
        with pytest.raises(UserError, match=r"bee/05.*go on with --resume --on-bad-image skip$"):
            pretrain(config, resume=True)
    assert pretrain(replace(config, on_bad_image="skip"), resume=True).steps == 12
    assert f"skipped: {own_data / file}" in (config.out / "log.txt").read_text()
    # The same, in one process that skips from the start.
    other = own_data.with_name("other")
    shutil.copytree(class_folders, other)
    record = Recorder.record

    def record_and_damage(self: Recorder, step: int, values: Any) -> None:
        record(self, step, values)
        if step == 6:
            damage(other / file)

    monkeypatch.setattr(Recorder, "record", record_and_damage)
    whole = replace(config, data=other, out=other.with_name("whole"), on_bad_image="skip")
    pretrain(whole)
    assert_same_state(newest(config), newest(whole))


def test_an_image_that_breaks_in_mid_run_can_be_restored(
    tiny_config: Config, own_data: Path
) -> None:
    config = replace(tiny_config, arch="micro_resnet", data=own_data, workers=1)
    file = own_data / "train" / "bee" / "05.JPEG"
    intact = file.read_bytes()
    pretrain(replace(config, max_steps=6))
    cut_off(file)
    with pytest.raises(BadImageError, match=r"restore it, or pass --on-bad-image skip; saved at"):
        pretrain(config, resume=True)
    file.write_bytes(intact)
    assert pretrain(config, resume=True).steps == 12


def test_what_has_changed_is_told_precisely(own_data: Path, tmp_path: Path) -> None:
    train = open_split(own_data, "train")
    data = fingerprint(train)
    write_record(tmp_path / "images.npz", train)
    record = read_record(tmp_path / "images.npz", data)
    assert record
    assert as_recorded(train, record, data, skip=False) == (train, "")
    folder = own_data / "train"
    (folder / "ant" / "02.JPEG").unlink()
    (folder / "ant" / "03.JPEG").unlink()
    spoil(folder / "bee" / "04.JPEG")
    damaged = open_split(own_data, "train")
    expected = (
        "2 images are missing (the first: ant/02.JPEG); 1 image is no longer readable "
        "(bee/04.JPEG: not a readable image (the content is none of JPEG, PNG, WebP, TIFF, BMP, GIF, "
        "AVIF))"
    )
    assert str(changes(record, damaged)) == expected
    with pytest.raises(UserError) as caught:
        as_recorded(damaged, record, data, skip=False)
    assert str(caught.value) == (
        f"--resume: the training images changed since the run started: {expected}: restore them, or "
        "go on with --resume --on-bad-image skip"
    )
    kept, line = as_recorded(damaged, record, data, skip=True)
    assert line.startswith(f"since the run started, {expected}")
    assert fingerprint(kept) == data
    position = record.paths.index("ant/02.JPEG")
    assert kept.name(position) == str(folder / "ant" / "02.JPEG")
    with pytest.raises(BadImageError, match="02.JPEG is missing"):
        kept.read(position)
    kept.will_need(position)
    last = len(kept) - 1
    assert bytes(kept.read(last)) == (folder / kept.paths[last]).read_bytes()
    # New and resized images would be other training data: not even skip takes them.
    Image.fromarray(np.zeros((9, 8, 3), np.uint8)).save(folder / "cow" / "05.JPEG")
    shutil.copy(folder / "cow" / "06.JPEG", folder / "cow" / "new.jpg")
    shutil.move(folder / "cow" / "07.JPEG", folder / "ant" / "cow.jpg")
    with pytest.raises(UserError, match="1 image is of another size") as caught:
        as_recorded(open_split(own_data, "train"), record, data, skip=True)
    assert "2 images are new (the first: ant/cow.jpg)" in str(caught.value)
    assert str(caught.value).endswith("restore them, or start again with another --out")


def test_a_class_that_is_gone_keeps_its_number(own_data: Path, tmp_path: Path) -> None:
    train = open_split(own_data, "train")
    write_record(tmp_path / "images.npz", train)
    record = read_record(tmp_path / "images.npz", fingerprint(train))
    shutil.rmtree(own_data / "train" / "ant")
    kept, _ = as_recorded(open_split(own_data, "train"), record, fingerprint(train), skip=True)
    assert list(kept.classes) == ["ant", "bee", "cow"]
    np.testing.assert_array_equal(kept.label, train.label)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"text"])
def test_a_damaged_list_of_images_is_none(own_data: Path, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "images.npz"
    train = open_split(own_data, "train")
    write_record(file, train)
    intact = file.read_bytes()
    assert read_record(file, "another data set") is None
    file.write_bytes(content)
    assert read_record(file, fingerprint(train)) is None
    for position in range(0, len(intact), 97):
        damaged = bytearray(intact)
        damaged[position] ^= 255
        file.write_bytes(damaged)
        record = read_record(file, fingerprint(train))
        assert record is None or list(record.paths) == list(train.paths)


def test_a_list_of_images_holds_any_name_and_is_small(tmp_path: Path) -> None:
    from fastsimsiam.storage.record import Record

    names = [f"n0{i // 1300:07d}/n0{i // 1300:07d}_{i * 37 % 9973}.JPEG" for i in range(20_000)]
    names += ["a/line\nbreak.jpg", os.fsdecode(b"a/latin\xe91.jpg"), "a/é.jpg"]
    count = len(names)
    random = np.random.default_rng(0)
    record = Record(
        paths=names,
        classes=["a", "b"],
        label=random.integers(0, 2, count),
        sizes=random.integers(100, 500, (count, 2)).astype(np.int32),
        orientation=np.ones(count, np.uint8),
    )
    write_record(tmp_path / "images.npz", record)
    assert (tmp_path / "images.npz").stat().st_size < 12 * count
