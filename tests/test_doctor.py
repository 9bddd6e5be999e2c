"""The doctor: its diagnosis from given measurements, and its measurements of a tiny run."""

import json
import shutil
import signal
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from as_stored import shards
from PIL import Image
from small_places import files_of_at_most

from fastsimsiam.cli import main
from fastsimsiam.config.methods import MoCoConfig
from fastsimsiam.config.run import Config, KnnConfig
from fastsimsiam.doctor import doctor as doctor_module
from fastsimsiam.doctor.diagnosis import Measurements, advice, bottleneck, forecast, parts_allow
from fastsimsiam.doctor.doctor import diagnose
from fastsimsiam.doctor.measure_data import measure_one_file, measure_storage
from fastsimsiam.doctor.report import Report, format_report
from fastsimsiam.doctor.synthetic import repeated, synthetic_photographs
from fastsimsiam.errors import UserError
from fastsimsiam.recipes import catalogue
from fastsimsiam.recipes.base import DataSet, Recipe
from fastsimsiam.storage.base import Storage
from fastsimsiam.storage.class_folder import open_split
from fastsimsiam.storage.open import open_split as open_any
from fastsimsiam.system.hardware import commit, cpu_name, describe
from fastsimsiam.system.resources import host_memory
from fastsimsiam.train.trainer import Trainer

# A GPU with a loader that is fast enough.
FED = Measurements(
    gpu=True,
    storage=20_000,
    one_file=None,
    decode=9_000,
    loader=8_000,
    augment=200_000,
    step=4_000,
    train=3_950,
    features=12_000,
    samples=[3_900, 4_000, 3_950],
    data_wait=0.01,
    compile_seconds=60,
    loader_name="cpu",
    workers=16,
    cores=16,
    decoded_bytes=10**12,
    device_memory=80 * 10**9,
    device_free=10 * 10**9,
    host_free=100 * 10**9,
    mean_pixels=187_500,
    crop_pixels=224**2,
    packed=False,
    has_dali=True,
    why_compile_fails=None,
    precision="bfloat16",
    compiled="step",
    batch_size=512,
)
STARVED = replace(FED, loader=2_000, decode=2_400, train=1_990, data_wait=0.5)
CPU_ONLY = replace(FED, gpu=False, loader=1_000, step=100, train=91, compiled="color")


@pytest.mark.parametrize(
    ("measurements", "expected"),
    [
        (FED, "step"),
        (STARVED, "decode"),
        (replace(STARVED, storage=2_100), "storage"),
        (replace(STARVED, loader_name="resident"), "loader"),
        (CPU_ONLY, "step"),
        (replace(CPU_ONLY, loader=50, decode=60, train=33), "decode"),
        (replace(CPU_ONLY, loader=1_200, step=500, train=353, loader_name="resident"), "step"),
    ],
)
def test_the_bottleneck(measurements: Measurements, expected: str) -> None:
    part, explanation = bottleneck(measurements)
    assert part == expected
    assert explanation


def advised(measurements: Measurements, start: str) -> bool:
    """Whether a line of advice begins with a text."""
    return any(line.startswith(start) for line in advice(measurements))


def test_advice_follows_from_the_measurements() -> None:
    assert advice(FED) == []
    assert advised(STARVED, "--loader dali")
    assert advised(replace(STARVED, has_dali=False), "pip install 'fastsimsiam[dali]'")
    assert not advised(STARVED, "--workers")
    assert advised(replace(STARVED, workers=4), "--workers 16")
    assert not advised(STARVED, "--loader resident")
    small = replace(STARVED, decoded_bytes=10**9)
    assert advised(small, "--loader resident")
    assert not advised(replace(small, host_free=10**9), "--loader resident")
    assert not advised(STARVED, "fastsimsiam pack")
    huge = replace(STARVED, mean_pixels=4_000_000)
    assert advised(huge, "fastsimsiam pack SRC DST.beton --max-side 512")
    assert not advised(replace(huge, packed=True), "fastsimsiam pack")
    assert advised(replace(STARVED, storage=2_100), "copy the data set")
    slow = replace(STARVED, storage=2_100, one_file=8_400)
    assert any("one file is read 4.0 times as fast here" in line for line in advice(slow))
    assert not advised(replace(slow, one_file=2_500), "pack the data set")
    assert advised(replace(FED, device_free=60 * 10**9), "a larger --batch-size than 512")
    assert advised(replace(FED, precision="float32"), "--precision bf16")
    assert advised(replace(FED, compiled="off"), "--compile step")
    assert advised(CPU_ONLY, "a GPU")
    lacking = replace(CPU_ONLY, compiled="off", why_compile_fails="install g++")
    assert advised(lacking, "install g++")
    assert advised(replace(lacking, gpu=True), "install g++, then --compile step")
    assert advised(replace(FED, loader_name="reference"), "--loader auto")


def test_on_a_cpu_advice_covers_the_loader_too() -> None:
    shared = replace(CPU_ONLY, loader=240, step=100, train=70, decoded_bytes=10**9)
    assert advised(shared, "a GPU")
    assert advised(shared, "--loader resident")
    assert not advised(replace(CPU_ONLY, decoded_bytes=10**9), "--loader resident")


def test_parts_take_turns_on_a_cpu_and_run_side_by_side_on_a_gpu() -> None:
    assert parts_allow(300.0, 100.0, gpu=True)[0] == 100.0
    assert parts_allow(300.0, 100.0, gpu=False)[0] == pytest.approx(75.0)


def test_the_forecast_adds_up() -> None:
    ahead = forecast(FED, steps=1000, evaluations=3, images_per_evaluation=24_000)
    assert ahead.train == pytest.approx(1000 * 512 / 3_950)
    assert ahead.evaluate == pytest.approx(3 * 24_000 / 12_000)
    assert ahead.seconds == pytest.approx(ahead.train + ahead.evaluate + 60)
    # Steady samples: a twentieth is the least. Unsteady ones: two standard errors.
    assert ahead.high / ahead.seconds == pytest.approx(1.05)
    unsteady = replace(FED, samples=[2_000, 6_000, 4_000, 4_000])
    wide = forecast(unsteady, steps=1000, evaluations=0, images_per_evaluation=0)
    assert wide.high / wide.seconds == pytest.approx(1 + 2 * 1632.99 / 2 / 4000, rel=1e-3)


def test_a_batch_is_halved_only_where_its_own_step_is_too_long(
    monkeypatch: pytest.MonkeyPatch, class_folders: Path
) -> None:
    """A step's constant cost must not count against a large batch."""
    config, storage = catalogue.recipe("imagenette"), open_split(class_folders, "train")
    sizes: list[int] = []

    def seconds(_: Config, size: int, __: Storage) -> float:
        sizes.append(size)
        return 0.2 + 0.005 * size

    monkeypatch.setattr(doctor_module, "_step_seconds", seconds)
    # A step may take 1.2 s of a minute. By the rate at 8 images, 64 would take 1.9 s; they take 0.5.
    assert doctor_module._measured_batch(config, 64, storage, 60.0) == 64
    assert sizes == [16, 32]
    assert doctor_module._measured_batch(config, 512, storage, 60.0) == 128
    assert max(sizes) == 128
    assert doctor_module._measured_batch(config, 12, storage, 0.001) == 12


@pytest.fixture(scope="module")
def measurements_of_a_run(class_folders: Path) -> dict[str, object]:
    """The doctor's JSON for a tiny run."""
    config = replace(
        catalogue.recipe("imagenette"),
        data=class_folders,
        arch="tiny_resnet",
        image_size=32,
        batch_size=16,
        epochs=40,
        device="cpu",
        compile="off",
        loader="cpu",
        workers=1,
        knn=KnnConfig(every_epochs=10),
    )
    lines: list[str] = []
    report = diagnose(config, minutes=0.05, say=lines.append)
    assert lines[0].startswith("loader cpu (asked for)")
    text = format_report(report)
    assert "Bottleneck: " in text
    assert "40 epochs will take" in text
    stored: dict[str, object] = json.loads(json.dumps(report.as_dict()))
    return stored


def test_measurements_of_a_run_are_there_and_fit_together(
    measurements_of_a_run: dict[str, object],
) -> None:
    measurements = measurements_of_a_run["measurements"]
    assert isinstance(measurements, dict)
    for name in ("storage", "decode", "loader", "augment", "step", "train", "features"):
        assert measurements[name] > 0, name
    # Decoding is the smaller part of the cost of tiny images: no closer bound holds.
    assert measurements["decode"] > 0.3 * measurements["loader"]
    assert measurements["step"] < measurements["augment"]
    assert measurements["train"] < 2 * measurements["step"]
    ahead = measurements_of_a_run["forecast"]
    assert isinstance(ahead, dict)
    # 40 epochs of six steps; evaluations before the first epoch and after every tenth.
    assert ahead["train"] == pytest.approx(40 * 6 * 16 / measurements["train"])
    assert ahead["evaluate"] == pytest.approx(5 * (96 + 24) / measurements["features"])
    assert measurements_of_a_run["images"] == 96
    assert {"synthetic_images", "bottleneck", "bottleneck_explained"} <= set(measurements_of_a_run)
    assert not measurements_of_a_run["synthetic_images"]


def test_synthetic_photographs_are_measured_without_a_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a folder without data/
    config: Config = replace(
        catalogue.recipe("cifar10-800ep"),
        arch="tiny_resnet",
        stem="imagenet",
        batch_size=32,
        device="cpu",
        compile="off",
        loader="cpu",
        workers=1,
    )
    report = diagnose(config, minutes=0.02)
    assert report.synthetic
    assert 50_000 <= report.images < 50_256
    assert "synthetic photographs" in format_report(report)


@pytest.mark.parametrize("name", [*catalogue.RECIPES, "mine"])
def test_every_recipe_is_measured_without_its_data_set(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also a recipe with a data folder that no other recipe has."""
    mine = Recipe(
        make=lambda: replace(
            catalogue.recipe("imagenette"), recipe="mine", data=Path("photos of mine")
        ),
        data_set=DataSet(name="mine", train_images=1_000, val_images=10, height=60, width=80),
    )
    monkeypatch.setitem(catalogue.RECIPES, "mine", mine)
    monkeypatch.chdir(tmp_path)  # a folder without data/
    opened: list[Storage] = []

    def measure(_: Config, __: object, train: Storage, *___: object) -> tuple[Measurements, float]:
        opened.append(train)
        return FED, 1e6

    monkeypatch.setattr(doctor_module, "_SYNTHETIC_FILES", 4)
    monkeypatch.setattr(doctor_module, "_measured_batch", lambda _, size, *__: size)
    monkeypatch.setattr(doctor_module, "_measure", measure)
    assert main(["doctor", "--recipe", name, "--device", "cpu"]) == 0
    data_set = catalogue.find(name).data_set
    (train,) = opened
    assert data_set.train_images <= len(train) < data_set.train_images + 4
    assert train.sizes[0].tolist() == [data_set.height, data_set.width]
    assert "images (synthetic photographs)" in capsys.readouterr().out


def test_a_config_of_an_unknown_recipe_is_one_line() -> None:
    config = replace(catalogue.recipe("imagenette"), recipe="mine")
    with pytest.raises(
        UserError, match=r"^there is no recipe 'mine': [^\n]*fastsimsiam recipes lists all$"
    ):
        diagnose(config)


def test_synthetic_photographs_are_like_photographs() -> None:
    folder = synthetic_photographs(4)
    files = sorted(folder.rglob("*.jpg"))
    assert len(files) == 4
    assert synthetic_photographs(4) == folder
    with Image.open(files[0]) as image:
        assert image.size == (500, 375)
    # ImageNet's average is 110 kB for that size.
    assert 60_000 < files[0].stat().st_size < 180_000
    storage = open_split(folder, "train")
    assert len(repeated(storage, 10)) == 12
    assert repeated(storage, 10).paths[4] == storage.paths[0]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--recipe", "nope"], "there is no recipe 'nope'"),
        (["--minutes", "0"], "--minutes is 0: give more than 0"),
        (["--data", "/no/such/folder"], "/no/such/folder"),
        (["--no-such-key", "1"], "--no-such-key"),
    ],
)
def test_wrong_input_is_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", *argv]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_machine_is_described() -> None:
    machine = describe()
    assert machine["cores"] >= 1
    assert machine["memory"] == host_memory() > 10**8
    assert machine["versions"]["torch"]
    assert set(machine["optional"]) == {"ffcv", "dali", "compiler", "matplotlib"}
    json.dumps(machine)


def test_synthetic_photographs_need_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with (
        files_of_at_most(1000),
        pytest.raises(
            UserError, match=f"photographs to {tmp_path} .*: set TMPDIR to another folder"
        ),
    ):
        synthetic_photographs(2, 60, 80)
    assert not list(tmp_path.iterdir())
    assert len(list(synthetic_photographs(2, 60, 80).glob("*/*.jpg"))) == 2


def test_shared_cores_and_limits_are_told() -> None:
    report = Report(
        machine=describe() | {"limits": "limits of this container or job: 0.5 of 2 cores"},
        config=catalogue.recipe("imagenette"),
        images=10,
        synthetic=True,
        measured_batch=2,
        storage_bytes_per_second=1.0,
        choices="",
        passed_over={},
        shared_cores="the cores are shared: other programs use 1.6 of 2 (load 4.1)",
        measurements=FED,
        forecast=forecast(FED, steps=10, evaluations=0, images_per_evaluation=0),
    )
    lines = format_report(report).splitlines()
    assert "Limits of this container or job: 0.5 of 2 cores" in lines
    assert (
        sum(line.startswith("The cores are shared: other programs use 1.6") for line in lines) == 1
    )
    assert "cores are shared" in report.as_dict()["shared_cores"]
    quiet = replace(report, machine=describe() | {"limits": None}, shared_cores=None)
    assert "hared" not in format_report(quiet)
    assert "imits" not in format_report(quiet)


def short_run(class_folders: Path, **changes: object) -> Config:
    """A run of two steps on tiny images."""
    return replace(
        catalogue.recipe("imagenette"),
        data=class_folders,
        arch="tiny_resnet",
        image_size=32,
        batch_size=48,
        epochs=1,
        device="cpu",
        compile="off",
        loader="cpu",
        workers=1,
        **changes,
    )


def test_a_run_shorter_than_its_measurement_has_a_forecast(class_folders: Path) -> None:
    report = diagnose(short_run(class_folders, knn=KnnConfig(every_epochs=0)), minutes=0.02)
    assert report.forecast.train == pytest.approx(2 * 48 / report.measurements.train)


def test_a_batch_is_halved_to_no_size_that_the_method_refuses(class_folders: Path) -> None:
    """MoCo needs two groups: of 16 images here, 32 by default."""
    moco = MoCoConfig(hidden_dim=16, projection_dim=8, queue_size=64, bn_group_size=16)
    config = replace(short_run(class_folders), arch="two_layers", method=moco, batch_size=64)
    storage = open_split(class_folders, "train")
    assert doctor_module._measured_batch(config, 64, storage, 1e-6) == 32
    default = replace(config, method=replace(moco, bn_group_size=32))
    assert doctor_module._measured_batch(default, 64, storage, 1e-6) == 64
    with pytest.raises(UserError, match=r"^--method.bn-group-size is 32, but the 32 images[^\n]*$"):
        diagnose(replace(default, batch_size=32))


def test_a_run_that_pretrain_refuses_has_no_forecast(class_folders: Path) -> None:
    config = replace(short_run(class_folders), batch_size=128)
    with pytest.raises(UserError, match="has 96 images, fewer than one batch of 128"):
        diagnose(config, minutes=0.02)


def test_a_signal_ends_the_doctor_too(
    class_folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The trainer alone saves and returns the signal's number."""
    monkeypatch.setattr(Trainer, "fit", lambda self: signal.SIGINT)
    argv = ["--recipe", "imagenette", "--data", str(class_folders), "--arch", "tiny_resnet"]
    argv += ["--image-size", "32", "--batch-size", "16", "--device", "cpu", "--loader", "cpu"]
    assert main(["doctor", *argv, "--compile", "off", "--minutes", "0.02"]) == 130
    assert capsys.readouterr().err.endswith("fastsimsiam: interrupted by SIGINT\n")


def test_the_loader_reports_broken_images(class_folders: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(class_folders / "train", data)
    broken = data / "bee" / "02.JPEG"
    broken.write_bytes(broken.read_bytes()[:400])
    with pytest.raises(UserError, match=r"02\.JPEG"):
        diagnose(short_run(data), minutes=0.02)
    shutil.copy(data / "bee" / "03.JPEG", data)
    said: list[str] = []
    report = diagnose(short_run(data, on_bad_image="skip"), minutes=0.02, say=said.append)
    assert report.measurements.decode > 0
    assert report.as_dict()["passed_over"] == {"images beside the class folders": 1}
    assert said[0].startswith("WARNING: 1 image is beside the class folders of")


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        (
            "model\t\t: 2\nmodel name\t: AMD EPYC\ncpu family\t: 26\n\nmodel\t\t: 3\n",
            "AMD EPYC, cpu family 26, model 2",
        ),
        ("model name\t: Some: CPU\n", "Some: CPU"),
        ("CPU part\t: 0xd40\n", "by platform"),
    ],
)
def test_processors_of_two_generations_have_two_names(
    lines: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _: lines)
    monkeypatch.setattr("platform.processor", lambda: "by platform")
    assert cpu_name() == name


def test_the_commit_is_that_of_the_source_tree() -> None:
    root = Path(__file__).parent.parent
    git = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    if git.returncode:
        pytest.skip("not a git checkout")
    assert commit() == git.stdout.strip()


def test_one_file_is_measured_beside_many(class_folders: Path, tmp_path: Path) -> None:
    storage = open_split(class_folders, "train")
    before = sorted(class_folders.rglob("*"))
    rate = measure_one_file(storage, 2, 1.0)
    assert rate is not None
    assert rate > 100
    assert sorted(class_folders.rglob("*")) == before
    of_files, bytes_per_second = measure_storage(storage, 2, 1.0)
    mean = storage.bytes_total / len(storage)
    assert bytes_per_second == pytest.approx(of_files.images_per_second * mean, rel=0.01)
    shards(class_folders, tmp_path / "shards")
    packed = open_any(tmp_path / "shards", "train")
    assert measure_one_file(packed, 2, 1.0) is None
    assert measure_storage(packed, 2, 1.0)[0].images_per_second > 100
