"""The doctor: what follows from figures, and figures of a real, tiny run."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from fastsimsiam.cli import main
from fastsimsiam.config.run import Config, KnnConfig
from fastsimsiam.doctor import doctor as examine_module
from fastsimsiam.doctor.diagnosis import Figures, advice, forecast, holds_back, parts_allow
from fastsimsiam.doctor.doctor import examine, format_report
from fastsimsiam.doctor.synthetic import made_up_photographs, repeated
from fastsimsiam.errors import UserError
from fastsimsiam.recipes import catalogue
from fastsimsiam.storage.base import Storage
from fastsimsiam.storage.class_folder import open_split
from fastsimsiam.system.hardware import cpu_name, describe
from fastsimsiam.system.resources import host_memory
from fastsimsiam.train.trainer import Trainer

# A GPU that is fed well.
FED = Figures(
    gpu=True,
    storage=20_000,
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
    mean_pixels=187_500,
    crop_pixels=224**2,
    packed=False,
    has_dali=True,
    mend_for_compiling=None,
    precision="bfloat16",
    compiled="step",
    batch_size=512,
)
STARVED = replace(FED, loader=2_000, decode=2_400, train=1_990, data_wait=0.5)
CPU_ONLY = replace(FED, gpu=False, loader=1_000, step=100, train=91, compiled="color")


@pytest.mark.parametrize(
    ("figures", "what"),
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
def test_what_holds_back(figures: Figures, what: str) -> None:
    found, sentence = holds_back(figures)
    assert found == what
    assert sentence


def advised(figures: Figures, word: str) -> bool:
    """Whether some advice begins with a word."""
    return any(line.startswith(word) for line in advice(figures))


def test_advice_fits_what_there_is() -> None:
    assert advice(FED) == []
    assert advised(STARVED, "--loader dali")
    assert advised(replace(STARVED, has_dali=False), "pip install 'fastsimsiam[dali]'")
    assert not advised(STARVED, "--workers")
    assert advised(replace(STARVED, workers=4), "--workers 16")
    assert not advised(STARVED, "--loader resident")
    assert advised(replace(STARVED, decoded_bytes=10**9), "--loader resident")
    assert not advised(STARVED, "fastsimsiam pack")
    huge = replace(STARVED, mean_pixels=4_000_000)
    assert advised(huge, "fastsimsiam pack SRC DST.beton --max-side 512")
    assert not advised(replace(huge, packed=True), "fastsimsiam pack")
    assert advised(replace(STARVED, storage=2_100), "copy the data set")
    assert advised(replace(FED, device_free=60 * 10**9), "a larger --batch-size than 512")
    assert advised(replace(FED, precision="float32"), "--precision bf16")
    assert advised(replace(FED, compiled="off"), "--compile step")
    assert advised(CPU_ONLY, "a GPU")
    lacking = replace(CPU_ONLY, compiled="off", mend_for_compiling="install g++")
    assert advised(lacking, "install g++")
    assert advised(replace(lacking, gpu=True), "install g++, then --compile step")
    assert advised(replace(FED, loader_name="reference"), "--loader auto")


def test_on_a_cpu_the_smaller_part_is_thought_of_too() -> None:
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
    """What a step costs beside its images must not count against a large batch."""
    config, storage = catalogue.recipe("imagenette"), open_split(class_folders, "train")
    tried: list[int] = []

    def seconds(_: Config, size: int, __: Storage) -> float:
        tried.append(size)
        return 0.2 + 0.005 * size

    monkeypatch.setattr(examine_module, "_step_seconds", seconds)
    # A step may take 1.2 s of a minute. By the rate at 8 images, 64 would take 1.9 s; they take 0.5.
    assert examine_module._batch(config, 64, storage, 60.0) == 64
    assert tried == [16, 32]
    assert examine_module._batch(config, 512, storage, 60.0) == 128
    assert max(tried) == 128
    assert examine_module._batch(config, 12, storage, 0.001) == 12


@pytest.fixture(scope="module")
def figures_of_a_run(class_folders: Path) -> dict[str, object]:
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
    said: list[str] = []
    report = examine(config, minutes=0.05, say=said.append)
    assert said[0].startswith("loader cpu (asked for)")
    text = format_report(report)
    assert "Held back by" in text
    assert "40 epochs will take" in text
    found: dict[str, object] = json.loads(json.dumps(report.as_dict()))
    return found


def test_figures_of_a_run_are_there_and_fit_together(figures_of_a_run: dict[str, object]) -> None:
    figures = figures_of_a_run["figures"]
    assert isinstance(figures, dict)
    for name in ("storage", "decode", "loader", "augment", "step", "train", "features"):
        assert figures[name] > 0, name
    # Tiny images cost more around their decoding than in it, so no more can be said of these.
    assert figures["decode"] > 0.3 * figures["loader"]
    assert figures["step"] < figures["augment"]
    assert figures["train"] < 2 * figures["step"]
    ahead = figures_of_a_run["forecast"]
    assert isinstance(ahead, dict)
    # 40 epochs of six steps; evaluations before the first epoch and after every tenth.
    assert ahead["train"] == pytest.approx(40 * 6 * 16 / figures["train"])
    assert ahead["evaluate"] == pytest.approx(5 * (96 + 24) / figures["features"])
    assert figures_of_a_run["images"] == 96
    assert not figures_of_a_run["made_up_images"]


def test_made_up_photographs_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where no data/ is
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
    report = examine(config, minutes=0.02)
    assert report.made_up
    assert 50_000 <= report.images < 50_256
    assert "made-up photographs" in format_report(report)


def test_made_up_photographs_are_like_photographs() -> None:
    folder = made_up_photographs(4)
    files = sorted(folder.rglob("*.jpg"))
    assert len(files) == 4
    assert made_up_photographs(4) == folder
    with Image.open(files[0]) as image:
        assert image.size == (500, 375)
    # ImageNet's average is 110 kB for that size.
    assert 60_000 < files[0].stat().st_size < 180_000
    storage = open_split(folder, "train")
    assert len(repeated(storage, 10)) == 12
    assert repeated(storage, 10).paths[4] == storage.paths[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", "nope"], "there is no recipe 'nope'"),
        (["--minutes", "0"], "--minutes is 0: give more than 0"),
        (["--data", "/no/such/folder"], "/no/such/folder"),
        (["--no-such-key", "1"], "--no-such-key"),
    ],
)
def test_wrong_input_is_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_machine_is_described() -> None:
    found = describe()
    assert found["cores"] >= 1
    assert found["memory"] == host_memory() > 10**8
    assert found["versions"]["torch"]
    assert set(found["optional"]) == {"ffcv", "dali", "compiler", "matplotlib"}
    json.dumps(found)


def short_run(class_folders: Path, **changes: object) -> Config:
    """A run of two steps in all, of tiny images."""
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


def test_a_run_shorter_than_its_measurement_is_foretold(class_folders: Path) -> None:
    report = examine(short_run(class_folders, knn=KnnConfig(every_epochs=0)), minutes=0.02)
    assert report.forecast.train == pytest.approx(2 * 48 / report.figures.train)


def test_a_run_that_would_be_refused_is_not_foretold(class_folders: Path) -> None:
    config = replace(short_run(class_folders), batch_size=128)
    with pytest.raises(UserError, match="has 96 images, fewer than one batch of 128"):
        examine(config, minutes=0.02)


def test_a_signal_ends_the_doctor_too(
    class_folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The trainer survives one, saves and returns its number."""
    monkeypatch.setattr(Trainer, "fit", lambda self: signal.SIGINT)
    words = ["--recipe", "imagenette", "--data", str(class_folders), "--arch", "tiny_resnet"]
    words += ["--image-size", "32", "--batch-size", "16", "--device", "cpu", "--loader", "cpu"]
    assert main(["doctor", *words, "--compile", "off", "--minutes", "0.02"]) == 130
    assert capsys.readouterr().err.endswith("fastsimsiam: interrupted\n")


def test_broken_images_are_for_the_loader_to_say(class_folders: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(class_folders / "train", data)
    broken = data / "bee" / "02.JPEG"
    broken.write_bytes(broken.read_bytes()[:400])
    with pytest.raises(UserError, match=r"02\.JPEG"):
        examine(short_run(data), minutes=0.02)
    report = examine(short_run(data, on_bad_image="skip"), minutes=0.02)
    assert report.figures.decode > 0


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
