"""A full file system ends a command with one line, and nothing is left behind."""

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from damage.harness import LONG, OPTIONS, Run, assert_as_whole, finish
from damage.warm import Warm

LIMITS = (1, 100, 2_000, 4_096, 20_000, 50_000) if LONG else (100, 20_000)


@pytest.fixture(scope="module")
def trained(whole: Run) -> Path:
    return whole.out


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(place)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("this user may not mount a file system: a limit on file sizes stands for it")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def commands(trained: Path, data: Path, out: Path) -> dict[str, list[object]]:
    """Every command that writes a result; each `out` is a folder that exists."""
    return {
        "embed-npz": ["embed", trained, "--data", data, "--out", out / "e.npz"],
        "embed-parquet": ["embed", trained, "--data", data, "--out", out / "e.parquet"],
        "export-pth": ["export", trained, out / "e.pth"],
        "export-safetensors": ["export", trained, out / "e.safetensors"],
        "knn": ["knn", trained, "--data", data, "--k", "5", "--json", out / "k.json"],
        "linear": ["linear", trained, "--data", data, "--epochs", "1", "--out", out / "l"],
        "pack": ["pack", data / "train", out / "p.beton"],
        "pretrain": ["pretrain", "imagenette", "--data", data, "--out", out / "run", *OPTIONS],
        "report": ["report", trained, "--out", out / "r.html"],
        "views": ["views", data, "--out", out / "v.png"],
    }


NAMES = sorted(commands(Path(), Path(), Path()))


def assert_one_line(code: int, log: Path, out: Path) -> None:
    text = log.read_text()
    assert "Traceback" not in text, text
    assert code in (0, 2), (code, text)
    errors = [line for line in text.splitlines() if line.startswith("fastsimsiam: error: ")]
    assert len(errors) == (code == 2), text
    left = [path.name for path in out.rglob("*") if "partial" in path.name or path.is_dir()]
    assert not [name for name in left if name not in ("run", "checkpoints", "tensorboard", "l")], (
        left
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_limit_on_file_sizes(
    warm: Warm, trained: Path, few_images: Path, tmp_path: Path, name: str
) -> None:
    codes = []
    for limit in LIMITS:
        out = tmp_path / str(limit)
        out.mkdir()
        log = tmp_path / f"{limit}.log"
        argv = commands(trained, few_images, out)[name]
        codes.append(warm.run(argv, log, file_size=limit))
        assert_one_line(codes[-1], log, out)
    assert 2 in codes, "no limit was too small: the test tests nothing"


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk(
    warm: Warm, trained: Path, few_images: Path, small_disk: Path, tmp_path: Path, name: str
) -> None:
    log = tmp_path / "log"
    with suppress(OSError), open(small_disk / "ballast", "wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4096))
    code = warm.run(commands(trained, few_images, small_disk)[name], log)
    assert_one_line(code, log, small_disk)


def test_a_run_whose_disk_was_full_goes_on_when_there_is_room(
    warm: Warm, whole: Run, few_images: Path, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run", few_images)
    run.folder.mkdir()
    code = warm.run(run.command(), run.log, file_size=20_000, **run.options())
    assert code == 2, run.log.read_text()
    finish(warm, run)
    assert_as_whole(run, whole)
