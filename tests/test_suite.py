"""The suite ends in time and keeps finished results; each benchmark runs on a small scale."""

import argparse
import importlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import require

from benchmarks import (
    augment,
    charts,
    decode,
    forecast,
    harness,
    loader,
    step,
    suite,
    train,
    training,
)
from benchmarks.suite import Job
from fastsimsiam.doctor.measure import logged
from fastsimsiam.storage.class_folder import open_split


def test_a_job_out_of_time_ends_with_its_children(tmp_path: Path) -> None:
    started = time.monotonic()
    job = Job(name="slow", argv=("timeit", "-n", "1", "-r", "1", "import time; time.sleep(60)"))
    assert suite.run(job, tmp_path, tmp_path, 1.0) == "out of time"
    assert time.monotonic() - started < 10
    assert suite.run(Job(name="fine", argv=("timeit", "1")), tmp_path, tmp_path, 30) == "done"
    assert "loops" in (tmp_path / "fine.log").read_text()
    broken = suite.run(Job(name="broken", argv=("no_such_module",)), tmp_path, tmp_path, 30)
    assert broken == "failed with code 1: see broken.log"


def test_the_suite_continues_after_its_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = [Job(name="fine", argv=("timeit", "1")), Job(name="broken", argv=("no_such_module",))]
    monkeypatch.setattr(suite, "cpu_jobs", lambda: jobs)
    argv = ["suite", "--minutes", "1", "--out", str(tmp_path), "--data", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", argv)
    assert suite.main() == 1
    assert "fine: done (" in capsys.readouterr().out
    assert suite.main() == 1
    again = capsys.readouterr().out
    assert "fine: done before" in again
    assert "broken: failed" in again


def test_a_failed_configuration_leaves_the_others_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "regime.py").write_text(
        "import sys\nname = sys.argv[2]\nprint('{}')\nsys.exit({'fine': 0, 'part': 3}.get(name, 1))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    samples, failed = harness.run_all("regime", ["fine", "broken"], 2, [])
    assert (samples, failed) == ({"fine": [{}, {}]}, ["broken"])
    assert capfd.readouterr().err.count("broken: FAILED with code 1") == 1
    args = argparse.Namespace(json=tmp_path / "result.json")
    with pytest.raises(SystemExit) as end:
        harness.conclude(args, {"samples": samples, "failed": failed}, str)
    assert end.value.code == harness.INCOMPLETE
    assert json.loads(args.json.read_text())["failed"] == ["broken"]
    with pytest.raises(SystemExit, match="nothing was measured"):
        harness.run_all("regime", ["broken"], 1, [])
    part = Job(name="part", argv=("regime", "--measure", "part"))
    assert suite.run(part, tmp_path, tmp_path, 30) == "failed in part: see part.log"
    assert (tmp_path / "part.done").exists()


def test_variants_of_the_step_add_up_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "step.json"
    argv = "step --arch resnet18 --image-size 32 --batch-size 4 --steps 1 --repeats 1 --add".split()
    argv += ["--json", str(file)]
    for variant in ("eager", "textbook-fp32"):
        monkeypatch.setattr(sys, "argv", [*argv, "--only", variant])
        step.main()
    found = json.loads(file.read_text())
    assert list(found["variants"]) == list(found["samples"]) == ["textbook-fp32", "eager"]
    monkeypatch.setattr(sys, "argv", [*argv, "--image-size", "64", "--only", "eager"])
    with pytest.raises(SystemExit, match="has another image_size: name another file"):
        step.main()
    del found["samples"]["eager"][0]["gradient_norms"]
    file.write_text(json.dumps(found))
    monkeypatch.setattr(sys, "argv", [*argv, "--only", "eager"])
    with pytest.raises(SystemExit, match="has no gradient norms to compare"):
        step.main()


def test_a_variant_with_another_step_is_left_out() -> None:
    losses = {"compiled-fused-bn": -0.6, "compiled-aten-bn": -0.501, "compiled": -0.5}
    gradients = {"gradient_norms": {"weight": 0.1, "no gradient": 0.0}}
    samples = {name: [{"loss": loss} | gradients] for name, loss in losses.items()}
    wrong = ["compiled-fused-bn"]
    assert step.different_steps(samples) == wrong
    del samples["compiled-aten-bn"]
    assert step.different_steps(samples) == wrong
    lost, double, left_out = {"weight": 0.0}, {"weight": 0.2}, {}
    for norms in (lost | {"no gradient": 0.0}, double | {"no gradient": 0.0}, left_out):
        samples[wrong[0]] = [{"loss": -0.501, "gradient_norms": norms}]
        assert step.different_steps(samples) == wrong
    samples[wrong[0]] = [{"loss": float("nan")} | gradients]
    assert step.different_steps(samples) == wrong
    samples[wrong[0]] = [{"loss": -0.501, "gradient_norms": {"weight": 0.11, "no gradient": 1e-7}}]
    assert step.different_steps(samples) == []
    samples["compiled"] = [{"loss": float("nan")} | gradients]
    with pytest.raises(SystemExit, match="compiled: the loss is nan"):
        step.different_steps(samples)


def test_an_interrupt_ends_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Interrupted(subprocess.Popen[bytes]):
        def wait(self, timeout: float | None = None) -> int:
            started.append(self)
            if len(started) == 1:
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    job = Job(name="slow", argv=("timeit", "-n", "1", "-r", "1", "import time; time.sleep(60)"))
    with pytest.raises(KeyboardInterrupt):
        suite.run(job, tmp_path, tmp_path, 30)
    assert started[0].returncode == -signal.SIGKILL


def test_jobs_without_time_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sleep = ("timeit", "-n", "1", "-r", "1", "import time; time.sleep(2)")
    jobs = [
        Job(name="first", argv=sleep),
        Job(name="second", argv=sleep),
        Job(name="third", argv=sleep, takes_data=True),
    ]
    monkeypatch.setattr(suite, "cpu_jobs", lambda: jobs)
    out = str(tmp_path / "out")
    argv = ["suite", "--minutes", "0.01", "--out", out, "--data", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", argv)
    assert suite.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" (")[0] for line in lines] == [
        "first: out of time",
        "second: not started: out of time",
        "third: not started: out of time",
    ]


def test_every_job_parses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each benchmark parses the arguments it would be run with."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_exit(parser: argparse.ArgumentParser) -> None:
        parse_args(parser)
        parser.exit(0)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_exit)
    for job in suite.cpu_jobs():
        monkeypatch.setattr(sys, "argv", list(job.argv))
        with pytest.raises(SystemExit) as end:
            importlib.import_module(job.argv[0]).main()
        assert end.value.code == 0, f"{job.argv}: {capsys.readouterr().err}"
    names = [job.name for job in suite.cpu_jobs()]
    assert len(set(names)) == len(names)


def test_logged_rates_are_weighted_by_their_windows() -> None:
    history = [
        {"step": 4, "images_per_second": 1.0, "data_wait": 1.0},
        {"step": 6, "images_per_second": 100.0, "data_wait": 0.0},
        {"step": 8, "images_per_second": 50.0, "data_wait": 0.5},
    ]
    rate, data_wait, seconds = logged(history, 4, 100)
    assert seconds == pytest.approx(2 + 4)
    assert rate.images_per_second == pytest.approx(400 / 6)
    assert data_wait == pytest.approx(2 / 6)


@pytest.mark.parametrize("name", [n for n in decode.CONFIGURATIONS if n not in decode.GPU_ONLY])
def test_each_decoder_runs(name: str, class_folders: Path) -> None:
    if name == "dali":
        require("dali")
    found = decode.measure(name, class_folders, 1, 96)
    assert found["images_per_second"] > 0


@pytest.mark.parametrize("name", ["eager", "torchvision", "pillow"])
def test_each_color_runs(name: str) -> None:
    found = augment.measure(name, 4, 32, seconds=0.05)
    assert found["batch_seconds"]
    if name != "pillow":
        return
    result = {
        "image_size": 32,
        "batch_size": 4,
        "summary": {n: {"median": m, "spread": 0.1} for n, m in (("eager", 30), ("pillow", 10))},
    }
    assert "| eager | 30 | 3.0 | 10% |" in augment.table(result)


@pytest.mark.parametrize("name", ["official", "lightly"])
def test_peers_give_every_image_once(name: str, photos: Path) -> None:
    if name == "lightly":
        pytest.importorskip("lightly", reason="lightly is not installed: pip install -e '.[bench]'")
    storage = open_split(photos, "train")
    epoch = loader.CONFIGURATIONS[name](storage, 2)
    assert sum(epoch(0, len(storage))) == len(storage) // loader.BATCH * loader.BATCH


def test_a_data_set_below_one_batch_is_repeated(class_folders: Path) -> None:
    argv = ["--data", str(class_folders), "--arch", "tiny_resnet", "--image-size", "32"]
    argv += ["--batch-size", "128", "--steps", "1", "--workers", "1", "--compile", "off"]
    import tiny_backbone  # noqa: F401 (registers tiny_resnet)

    args = train.command_line().parse_args(argv)
    assert len(open_split(class_folders, "train")) < args.batch_size
    found = train.measure("loader", train.config_of(args), args.steps)
    assert found["images_per_second"] > 0


def test_training_at_full_size_says_how_long_imagenet_takes() -> None:
    result = {
        "arch": "resnet50",
        "image_size": 224,
        "batch_size": 256,
        "loader": "cpu",
        "summary": {name: {"median": 4600.0, "spread": 0.01} for name in train.NAMES},
        "samples": {name: [{"cores": 1.0}] for name in train.NAMES},
        "share_of_parts": 1.0,
        "parts_allow": 4600.0,
        "rule": "the slower",
    }
    assert "ImageNet's 100 epochs take 7.7 hours" in train.table(result)
    assert "hours" not in train.table(result | {"image_size": 64})


@pytest.mark.parametrize("name", train.NAMES)
def test_each_regime_of_training_runs(name: str, class_folders: Path) -> None:
    argv = ["--data", str(class_folders), "--arch", "tiny_resnet", "--image-size", "32"]
    argv += ["--batch-size", "16", "--steps", "3", "--workers", "1", "--compile", "off"]
    import tiny_backbone  # noqa: F401 (registers tiny_resnet)

    args = train.command_line().parse_args(argv)
    found = train.measure(name, train.config_of(args), args.steps)
    assert found["images_per_second"] > 0
    assert 0 < found["cores"] < 64
    json.dumps(found)


def test_a_forecast_is_compared_with_its_run(class_folders: Path, tmp_path: Path) -> None:
    flags = ["--arch", "resnet18", "--image-size", "32", "--batch-size", "16", "--max-steps", "2"]
    flags += ["--device", "cpu", "--knn.every-epochs", "0", "--compile", "off", "--loader", "cpu"]
    found = forecast.measure("imagenette", class_folders, 0.05, flags, tmp_path)
    assert found["steps"] == 2
    assert found["measured_seconds"] > 0
    assert str(tmp_path) not in json.dumps(found)
    assert found["error"] > -1
    assert "2 steps: after measuring for 0.05 minutes the forecast was" in forecast.table(found)


@pytest.mark.parametrize("regime", ["loader", "step"])
def test_a_chart_knows_what_it_was_drawn_from(regime: str, tmp_path: Path) -> None:
    source, picture = tmp_path / "result.json", tmp_path / "chart.png"
    committed = Path(suite.__file__).parent / "results" / f"{regime}.json"
    source.write_text(committed.read_text())
    assert not charts.is_current(source, picture)
    charts.draw(source, picture)
    assert charts.is_current(source, picture)
    source.write_text(committed.read_text() + " ")
    assert not charts.is_current(source, picture)


def test_a_recipe_is_run_and_published(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The docstring's command on a small scale; run again, it resumes and the seconds add up."""
    file, out = tmp_path / "result.json", tmp_path / "run"
    argv = ["imagenette", "--data", class_folders, "--out", out, "--json", file]
    flags = ["--arch", "resnet18", "--image-size", 32, "--batch-size", 16, "--epochs", 1]
    flags += ["--device", "cpu", "--max-steps", 2, "--knn.every-epochs", 0]
    for linear in ([], ["--linear", 16]):
        monkeypatch.setattr(sys, "argv", ["training", *map(str, [*argv, *linear, "--", *flags])])
        training.main()
        found = json.loads(file.read_text())
        assert found["steps"] == 2
        assert found["seconds"] > 0
        assert str(tmp_path) not in file.read_text()
    assert 0 < found["linear_cached"]["top1"] <= 100
