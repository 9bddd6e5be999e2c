"""Measures of certainty against independent code, and the command `uncertainty` on a run."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import save_run
from PIL import Image
from pyarrow import parquet
from sklearn.metrics import roc_auc_score

from fastsimsiam.cli import main
from fastsimsiam.config.evaluation import EvalOptions
from fastsimsiam.config.methods import VISimSiamConfig
from fastsimsiam.config.run import Config
from fastsimsiam.evaluate import uncertainty as uncertainty_module
from fastsimsiam.evaluate.corruptions import CORRUPTIONS
from fastsimsiam.evaluate.features import centered_features
from fastsimsiam.evaluate.knn import knn
from fastsimsiam.evaluate.pretrained import load_pretrained
from fastsimsiam.evaluate.selective import accuracy_by_quantile, auroc, least_aurc, risk_coverage
from fastsimsiam.evaluate.trained_method import trained_method
from fastsimsiam.evaluate.uncertainty import Measure, UncertaintyResult, uncertainty
from fastsimsiam.evaluate.uncertainty_picture import draw_uncertainty
from fastsimsiam.methods.vi_simsiam import VISimSiam

ON_CPU = EvalOptions(device="cpu", precision="fp32", loader="cpu")


@pytest.mark.parametrize("digits", [0, 1, 8])
def test_auroc_is_that_of_scikit_learn(digits: int) -> None:
    """With many ties, few and none."""
    rng = np.random.default_rng(0)
    higher, lower = rng.normal(0.5, 1, 80).round(digits), rng.normal(0, 1, 130).round(digits)
    answer = np.repeat([1, 0], [80, 130])
    expected = roc_auc_score(answer, np.concatenate([higher, lower]))
    assert auroc(higher, lower) == pytest.approx(expected)
    assert auroc(higher, lower[:0]) is None


def slow_risk(certainty: npt.NDArray[np.float64], correct: npt.NDArray[np.bool_]) -> list[float]:
    """Mean over 2,000 random orders of the images of equal certainty."""
    rng = np.random.default_rng(0)
    risks = []
    for _ in range(2000):
        order = sorted(range(len(correct)), key=lambda i: (-certainty[i], rng.random()))
        wrong = np.cumsum([not correct[i] for i in order])
        risks.append(wrong / np.arange(1, len(order) + 1))
    return list(np.mean(risks, axis=0))


def test_risk_and_coverage_share_errors_among_ties() -> None:
    rng = np.random.default_rng(1)
    certainty, correct = rng.integers(0, 4, 20).astype(float), rng.random(20) < 0.6
    coverage, risk = risk_coverage(certainty, correct)
    assert coverage.tolist() == pytest.approx([number / 20 for number in range(1, 21)])
    assert risk.tolist() == pytest.approx(slow_risk(certainty, correct), abs=0.03)
    assert risk[-1] == pytest.approx(1 - correct.mean())
    # One value for all images: their error rate at any coverage.
    assert risk_coverage(np.zeros(20), correct)[1].tolist() == pytest.approx([risk[-1]] * 20)


def test_a_perfect_order_has_the_least_aurc() -> None:
    correct = np.array([True, False, True, True])
    perfect = np.array([3.0, -1.0, 2.0, 5.0])
    risk = risk_coverage(perfect, correct)[1]
    assert risk.tolist() == [0, 0, 0, 0.25]
    assert least_aurc(correct) == pytest.approx(risk.mean())
    assert risk_coverage(-perfect, correct)[1].mean() > risk.mean()


def test_accuracy_by_quantile() -> None:
    certainty = np.arange(10.0)[::-1]
    correct = certainty >= 4
    assert accuracy_by_quantile(certainty, correct, 5) == [0, 0, 1, 1, 1]
    assert accuracy_by_quantile(certainty[:2], correct[:2], 5) == [1, 1]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_change_the_image_as_they_say(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 64, 64, generator=generator)
    before = images.clone()
    changed = CORRUPTIONS[name]()(images)
    assert torch.equal(images, before)
    assert changed.shape == images.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert torch.equal(CORRUPTIONS[name]()(images), changed)
    if name == "blur":
        assert changed.std() < 0.2 * images.std()
        flat = torch.full_like(images, 0.25)
        torch.testing.assert_close(CORRUPTIONS[name]()(flat), flat)
    elif name == "occlusion":
        assert changed[..., 13:51, 13:51].eq(0.5).all()
        assert changed.ne(0.5).float().mean() == pytest.approx(1 - 0.36, abs=0.02)
    else:
        gray = torch.full_like(images, 0.5)
        assert CORRUPTIONS[name]()(gray).std().item() == pytest.approx(0.28, abs=0.02)


SMALL = VISimSiamConfig(projector_layers=2, projector_dim=32, predictor_dim=16)


@pytest.fixture
def run(tiny_config: Config) -> Config:
    """A run of VI-SimSiam whose kappa rises with the first feature."""
    config = replace(tiny_config, method=SMALL)
    (path,) = save_run(config, steps=(1,))
    stored = torch.load(path, weights_only=True)
    weights = stored["method"]
    generator = torch.Generator().manual_seed(0)
    for key in ("kappa_head.layers.0.weight", "kappa_head.layers.3.weight"):
        weights[key] = torch.randn(weights[key].shape, generator=generator)
    torch.save(stored, path)
    return config


def test_uncertainty_of_a_run(
    run: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    (other / "plain").mkdir(parents=True)
    for number in range(5):
        Image.new("RGB", (40, 40), (40 * number, 0, 90)).save(other / "plain" / f"{number}.png")
    files = {name: tmp_path / f"result.{name}" for name in ("json", "png")}
    argv = ["uncertainty", str(run.out), "--data", str(run.data), "--ood", str(other), "--k", "5"]
    argv += ["--device", "cpu", "--precision", "fp32", "--loader", "cpu"]
    argv += [word for name, file in files.items() for word in (f"--{name}", str(file))]
    assert main(argv) == 0
    printed = capsys.readouterr()
    assert "kappa" in printed.out
    assert "other data" in printed.out
    assert f"--ood: 5 images of {other}" in printed.err
    result = json.loads(files["json"].read_text())
    assert list(result["measures"]) == ["kappa", "norm", "margin"]
    same = knn(run.out, run.data, k=(5,), options=ON_CPU)
    assert result["top1"] == pytest.approx(same.trained[5])
    assert (result["bank"], result["queries"]) == (same.bank, same.queries)
    assert result["ood_images"] == 5
    kappas = []
    for data, split in ((run.data, "val"), (other, "train")):
        embed = ["embed", str(run.out), "--data", str(data), "--split", split, "--device", "cpu"]
        embed += ["--precision", "fp32", "--out", str(tmp_path / f"{split}.npz")]
        assert main(embed) == 0
        kappas.append(np.load(tmp_path / f"{split}.npz")["kappa"])
    answer = np.repeat([1, 0], [len(kappa) for kappa in kappas])
    expected = roc_auc_score(answer, np.concatenate(kappas))
    assert result["measures"]["kappa"]["auroc_ood"] == pytest.approx(expected, abs=0.01)
    for measure in result["measures"].values():
        assert len(measure["accuracy"]) == 10
        assert np.mean(measure["accuracy"]) == pytest.approx(result["top1"] / 100, abs=0.05)
        assert measure["risk"][-1] == pytest.approx(1 - result["top1"] / 100)
        assert list(measure["auroc_corrupted"]) == ["blur", "occlusion", "noise"]
        assert list(measure["median"]) == ["clean", "blur", "occlusion", "noise", "ood"]
        assert 0 <= measure["auroc_ood"] <= 1
        assert measure["aurc"] >= result["least_aurc"]
    with Image.open(files["png"]) as picture:
        assert picture.size == (1320, 418)


def test_kappa_is_that_of_the_head_on_the_features(run: Config, tmp_path: Path) -> None:
    """By `embed`, as npz and as parquet."""
    for suffix in ("npz", "parquet"):
        argv = ["embed", str(run.out), "--data", str(run.data), "--split", "val"]
        argv += ["--device", "cpu", "--precision", "fp32", "--out", str(tmp_path / f"x.{suffix}")]
        assert main(argv) == 0
    table = np.load(tmp_path / "x.npz")
    method = trained_method(load_pretrained(run.out))
    assert method is not None
    with torch.no_grad():
        expected = method.certainty(torch.from_numpy(table["features"]))
    assert expected is not None
    np.testing.assert_allclose(table["kappa"], expected, rtol=1e-5)
    assert len(set(table["kappa"].tolist())) > len(expected) // 2
    column = parquet.read_table(tmp_path / "x.parquet")["kappa"].to_pylist()
    np.testing.assert_array_equal(column, table["kappa"])
    result = uncertainty(run.out, run.data, options=ON_CPU)
    assert result.measures["kappa"].median["clean"] == pytest.approx(
        float(expected.median()), rel=0.1
    )


@pytest.mark.parametrize("what", ["simsiam", "fixed", "exported"])
def test_without_a_kappa_norm_and_margin_are_left(
    what: str, run: Config, tiny_config: Config, tmp_path: Path
) -> None:
    source: Path = run.out
    if what == "exported":
        source = tmp_path / "weights.safetensors"
        assert main(["export", str(run.out), str(source)]) == 0
    elif what == "fixed":
        other = replace(run, out=tmp_path / "fixed", method=replace(SMALL, kappa=9.0))
        save_run(other)
        source = other.out
    else:
        other = replace(tiny_config, out=tmp_path / "simsiam")
        save_run(other)
        source = other.out
    result = uncertainty(source, run.data, options=ON_CPU)
    assert list(result.measures) == ["norm", "margin"]
    assert result.ood_images is None
    assert all(measure.auroc_ood is None for measure in result.measures.values())
    assert (
        main(["embed", str(source), "--data", str(run.data), "--out", str(tmp_path / "x.npz")]) == 0
    )
    assert "kappa" not in np.load(tmp_path / "x.npz")


class Pixels(torch.nn.Module):
    """Some pixels as features."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        flat = images.flatten(1)
        return flat[:, :: flat.shape[1] // self.dim][:, : self.dim].contiguous()


def test_damaged_images_are_less_certain_where_the_measure_sees_them(
    run: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certainty that is the contrast of the image tells blur, and knows nothing of noise."""

    def of_pixels(backbone: torch.nn.Module, *args: Any, **options: Any) -> Any:
        dim = load_pretrained(run.out).feature_dim
        return centered_features(Pixels(dim), *args, **options)

    monkeypatch.setattr(uncertainty_module, "centered_features", of_pixels)
    monkeypatch.setattr(VISimSiam, "certainty", lambda self, features: features.std(dim=1))
    measure = uncertainty(run.out, run.data, options=ON_CPU).measures["kappa"]
    assert measure.auroc_corrupted["blur"] > 0.7
    assert measure.median["blur"] < measure.median["clean"] < measure.median["noise"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--k", "0"], "--k is 0: give 1 or more"),
        (["--k", "5000"], "--k 5000 is more than the"),
        (["--ood", "/nowhere"], "/nowhere"),
        (["--ood", "{data}"], "is the data set itself: give another"),
        (["--image-size", "4"], "--image-size is 4: give 8 or more"),
    ],
)
def test_wrong_arguments_are_one_line(
    argv: list[str], message: str, run: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [word.replace("{data}", str(run.data)) for word in argv]
    assert main(["uncertainty", str(run.out), "--data", str(run.data), *argv]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("fastsimsiam: error") == 1


def test_the_picture_is_drawn_where_nothing_is_wrong(tmp_path: Path) -> None:
    measure = Measure(
        accuracy=[1.0] * 4,
        aurc=0.0,
        auroc_errors=None,
        auroc_corrupted={"blur": 0.8},
        auroc_ood=None,
        coverage=[0.5, 1.0],
        risk=[0.0, 0.0],
        median={"clean": 1.0, "blur": 0.5},
    )
    result = UncertaintyResult(
        measures={"norm": measure, "margin": measure},
        top1=100.0,
        least_aurc=0.0,
        k=3,
        bank=9,
        queries=4,
        ood_images=None,
        bad_images={},
        checkpoint=Path("run"),
        step=1,
        data=Path("data"),
        ood=None,
        notes=(),
    )
    draw_uncertainty(result, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000


def test_the_report_shows_the_most_and_the_least_certain_images(run: Config) -> None:
    (run.out / "metrics.jsonl").write_text('{"step": 1, "epoch": 0.5, "loss": 0.5}\n')
    assert main(["report", str(run.out), "--data", str(run.data), "--device", "cpu"]) == 0
    page = (run.out / "report.html").read_text()
    section = page.partition('<section id="certainty">')[2].partition("</section>")[0]
    strips = section.split('<div class="strip">')[1:]
    assert [strip.count("<figure") for strip in strips] == [12, 12]
    certain, uncertain = (
        [float(number.replace(",", "")) for number in re.findall("<small>([^<]+)</small>", strip)]
        for strip in strips
    )
    assert certain == sorted(certain, reverse=True)
    assert uncertain == sorted(uncertain)
    assert certain[-1] > uncertain[-1]
