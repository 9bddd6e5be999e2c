"""The report: the contents of the page, its notes on what is left out, its look in a browser."""

import base64
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from throwaway_method import ThrowawayConfig

from fastsimsiam.cli import main
from fastsimsiam.config.evaluation import EvalOptions
from fastsimsiam.config.methods import SimSiamConfig
from fastsimsiam.config.optimizer import OptimizerConfig
from fastsimsiam.config.run import Config, KnnConfig
from fastsimsiam.config.stored import to_dict
from fastsimsiam.config.views import ViewSpec
from fastsimsiam.errors import UserError
from fastsimsiam.methods.simsiam import SimSiam
from fastsimsiam.recipes import catalogue
from fastsimsiam.report import runs as report_runs
from fastsimsiam.report.flat_map import flat_map
from fastsimsiam.report.neighbors import Embedded, _nearest
from fastsimsiam.report.repeat import command
from fastsimsiam.report.report import report
from fastsimsiam.report.runs import diagnosis, read_runs
from fastsimsiam.report.thumbnails import thumbnails
from fastsimsiam.storage.class_folder import open_split
from fastsimsiam.train.pretrain import pretrain

CURVES = ["loss", "knn", "collapse-std", "lr", "images-per-second", "data-wait"]
CPU = EvalOptions(device="cpu", workers=2)


@dataclass
class Page(HTMLParser):
    """A parsed page.

    Attributes:
        tags: (name, attributes) of every element.
        scripts: texts of the scripts by id; those without an id joined under "".
        text: visible text.
    """

    source: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    scripts: dict[str, str] = field(default_factory=dict)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self._within = ""
        self._id = ""
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._within, self._id = tag, dict(attrs).get("id") or ""

    def handle_endtag(self, tag: str) -> None:
        if tag == self._within:
            self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within == "script":
            self.scripts[self._id] = self.scripts.get(self._id, "") + data
        elif not self._within:
            self.text += data + " "

    @property
    def charts(self) -> dict[str, Any]:
        charts: dict[str, Any] = json.loads(self.scripts["charts"])
        return charts

    @property
    def images(self) -> Any:
        return json.loads(self.scripts["images"])


def read(file: Path) -> Page:
    return Page(file.read_text())


@pytest.fixture
def config(tiny_config: Config) -> Config:
    """A run of two epochs with three kNN evaluations."""
    return replace(tiny_config, knn=KnnConfig(every_epochs=1, k=(5, 20)))


@pytest.fixture
def finished(config: Config) -> Config:
    pretrain(config)
    return config


def fake_run(folder: Path, config: Config, lines: list[dict[str, float]]) -> Path:
    """Writes a run's folder without a checkpoint."""
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "summary.json").write_text(json.dumps({"config": to_dict(config)}))
    return folder


def line(step: int, **values: float) -> dict[str, float]:
    return {"step": step, "epoch": step / 10, "loss": -0.5, "collapse_std": 0.9, **values}


def bare_line(step: int, **values: float) -> dict[str, float]:
    """A line of a method that logs no collapse metric."""
    return {"step": step, "epoch": step / 10, "loss": 5.0, **values}


def test_the_page_of_a_run_is_complete(
    finished: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(finished.out), "--device", "cpu"]) == 0
    file = finished.out / "report.html"
    assert str(file) in capsys.readouterr().out
    assert 4e6 < file.stat().st_size < 10e6
    page = read(file)
    # Nothing is loaded over a network, and plotly.js is embedded once.
    for _, attributes in page.tags:
        for key in ("src", "href"):
            assert (attributes.get(key) or "data:").startswith("data:")
    assert not [tag for tag, _ in page.tags if tag == "link"]
    assert page.source.count("plotly.js v") == 1
    assert (
        "meta",
        {"name": "viewport", "content": "width=device-width, initial-scale=1"},
    ) in page.tags
    for text in ("imagenette", "tiny_resnet", "96 of 3 classes", "2 of 2, batch 16", "Healthy"):
        assert text in page.text, text
    summary = json.loads((finished.out / "summary.json").read_text())
    score = summary["last"]["knn_top1_k5"]
    assert f"{score:.1f} %" in page.text
    assert summary["versions"]["torch"] in page.text
    assert list(page.charts) == [*CURVES, "map", "confusion"]
    places = [a["id"] for t, a in page.tags if t == "div" and a.get("class") == "plot"]
    assert places == [f"chart-{name}" for name in page.charts]


def test_pictures_and_predictions_match_the_data(finished: Config) -> None:
    page = read(report([finished.out], options=CPU))
    # Confusion: every validation image once; the diagonal is the kNN score of the training.
    heat = page.charts["confusion"]["data"][0]
    counts = np.array([[cell[2] for cell in row] for row in heat["customdata"]])
    assert counts.sum(axis=1).tolist() == [8, 8, 8]
    summary = json.loads((finished.out / "summary.json").read_text())
    assert 100 * counts.trace() / 24 == pytest.approx(summary["last"]["knn_top1_k5"])
    # Map: every validation image once, with its thumbnail and class.
    images = page.images
    numbers = [n for trace in page.charts["map"]["data"] for n in trace["customdata"]]
    assert sorted(numbers) == list(range(24))
    assert Counter(images["label"]) == {0: 8, 1: 8, 2: 8}
    for trace in page.charts["map"]["data"]:
        assert {images["classes"][images["label"][n]] for n in trace["customdata"]} == {
            trace["name"]
        }
    wrong = sum(a != b for a, b in zip(images["label"], images["predicted"], strict=True))
    assert wrong == 24 - counts.trace()
    val = open_split(finished.data, "val")
    for text, name in zip(images["jpegs"], images["names"], strict=True):
        with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
            assert picture.size == (56, 56)
        assert any(path.endswith("/" + name) for path in val.paths)
    # Gallery: twelve queries with six neighbors each, framed by class.
    frames = Counter(a["class"] for t, a in page.tags if t == "figure" and a["class"] != "chart")
    assert frames["query"] == 12
    assert frames["right"] + frames["wrong"] == 72
    assert f"{frames['right']} of 72 are of the same class" in page.text


def test_gallery_frames_neighbors_by_class(finished: Config) -> None:
    page = read(report([finished.out], options=CPU))
    query_name = None
    alts: list[tuple[str, str]] = []
    for tag, attributes in page.tags:
        if tag == "figure":
            frame = attributes["class"]
        elif tag == "img" and frame in ("query", "right", "wrong") and attributes.get("alt"):
            alts.append((frame or "", attributes["alt"] or ""))
    for frame, name in alts:
        if frame == "query":
            query_name = name
        else:
            assert (name == query_name) == (frame == "right")
    assert len(alts) == 12 * 7


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"data": Path("a folder/it's"), "out": Path("runs/x y"), "max_steps": 7, "workers": 3},
        {"method": SimSiamConfig(stop_gradient=False, predictor="none", projector_dim=64)},
        {"optimizer": OptimizerConfig(lr=0.3, schedule="step", warmup_epochs=1e-7)},
        {"optimizer": OptimizerConfig(name="lars", lr_scaling="sqrt", exclude_bias_and_norm=True)},
        {"optimizer": OptimizerConfig(decay="milestones", milestones=(120, 160))},
        {"knn": KnnConfig(every_epochs=4, k=(20, 200)), "precision": "bf16", "compile": "off"},
        {"views": (ViewSpec(blur_sigma=(0.1, 0.6), size=48), ViewSpec(area=(0.05, 1 / 3)))},
    ],
)
@pytest.mark.parametrize("recipe", ["imagenette", "cifar10-800ep"])
def test_the_command_repeats_the_config(
    monkeypatch: pytest.MonkeyPatch, recipe: str, changes: dict[str, Any]
) -> None:
    config = replace(catalogue.recipe(recipe), **changes)
    configs = []

    @dataclass
    class Ended:
        signal: int = 0

    def pretend(config: Config, **_: object) -> Ended:
        configs.append(config)
        return Ended()

    monkeypatch.setattr("fastsimsiam.train.pretrain.pretrain", pretend)
    argv = shlex.split(command(config)[0].replace("\\\n", ""))
    assert argv[:2] == ["fastsimsiam", "pretrain"]
    assert main(argv[1:]) == 0
    assert configs == [config]
    assert bool(changes) == (len(argv) > 3)


def test_the_command_names_only_what_differs() -> None:
    spec = ViewSpec(blur_sigma=(0.1, 0.6))
    config = replace(catalogue.recipe("imagenette"), views=(spec, ViewSpec()), epochs=24)
    assert command(config)[0].replace("\\\n   ", "") == (
        "fastsimsiam pretrain imagenette  --epochs 24  --views.0.blur-sigma 0.1 0.6"
    )


def test_no_command_for_a_config_that_no_option_expresses() -> None:
    config = catalogue.recipe("imagenette")
    assert command(replace(config, recipe="mine")) == (
        "",
        "This version has no recipe mine: repeat the run from Python.",
    )
    text, remark = command(replace(config, views=(ViewSpec(),) * 3))
    assert text == ""
    assert "has 3 views and the recipe 2" in remark
    text, remark = command(replace(config, method=ThrowawayConfig()))
    assert text == ""
    assert "method is throwaway and the recipe's simsiam" in remark


def test_text_of_users_is_escaped(config: Config, class_folders: Path, tmp_path: Path) -> None:
    markup = "<img src=x onerror=alert(1)>&amp;\"'"
    data = tmp_path / "data"
    shutil.copytree(class_folders, data)
    for split in ("train", "val"):
        (data / split / "ant").rename(data / split / markup)
    config = replace(config, data=data, out=tmp_path / "<script>alert(2)")
    pretrain(config)
    page = read(report([config.out], options=CPU))
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert sum(tag == "script" for tag, _ in page.tags) == 4
    assert "<script>alert(2)" in page.text
    assert markup in [a.get("alt") for _, a in page.tags]
    assert markup in page.images["classes"]  # set as textContent
    # "<!--<script" in a script would swallow the rest of the page.
    assert "<" not in page.scripts["images"] + page.scripts["charts"]
    # plotly reads markup in names: it gets them escaped.
    ticks = page.charts["confusion"]["layout"]["yaxis"]["ticktext"]
    assert ticks[0].startswith("&lt;img src=x on")
    assert page.charts["map"]["data"][0]["name"].startswith("&lt;img src=x on")


def test_notes_name_what_is_left_out(
    finished: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(finished.data, data)
    moved = replace(finished, data=data, out=tmp_path / "other")
    pretrain(moved)
    shutil.rmtree(data)
    page = read(report([moved.out], options=CPU))
    assert list(page.charts) == CURVES
    assert page.images is None
    assert f"Left out: there is no data set at {data}; pass --data PATH." in page.text
    assert "--data PATH" in capsys.readouterr().err
    # With --data nothing is left out, though it is not the config's folder.
    page = read(report([moved.out], data=finished.data, options=CPU))
    assert list(page.charts) == [*CURVES, "map", "confusion"]
    assert "was not trained" not in page.text
    # A folder that is no data set counts as missing; passed as --data, it is an error.
    (data / "train").mkdir(parents=True)
    assert "no image files under" in read(report([moved.out], options=CPU)).text
    with pytest.raises(UserError, match="no image files under"):
        report([moved.out], data=data, options=CPU)


def test_a_note_names_other_data(finished: Config, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(finished.data, data)
    next((data / "train" / "ant").iterdir()).unlink()
    page = read(report([finished.out], data=data, options=CPU))
    assert f"The network was not trained on the images of {data}." in page.text


def test_queries_of_a_flat_data_set_are_training_images(config: Config, tmp_path: Path) -> None:
    data = tmp_path / "flat"
    shutil.copytree(config.data / "train", data)
    shutil.copy(data / "bee" / "02.JPEG", data / "bee" / "02-copy.JPEG")
    config = replace(config, data=data)
    pretrain(config)
    page = read(report([config.out], options=CPU))
    assert list(page.charts) == [name for name in CURVES if name != "knn"] + ["map", "confusion"]
    assert "training images (there is no val/)" in page.text
    assert "97 training images, each excluded from its own neighbors" in page.text
    assert "not evaluated in training" in page.text
    counts = [cell[2] for row in page.charts["confusion"]["data"][0]["customdata"] for cell in row]
    assert sum(counts) == 97
    assert len(page.images["jpegs"]) == 97


def test_an_image_is_not_its_own_neighbor() -> None:
    features = torch.nn.functional.normalize(torch.randn(40, 8), dim=1)
    features[7] = features[3]  # a copy, which may rank before the image itself
    features[20:32] = features[20]  # more copies than neighbors: the image itself may not be found
    label = torch.zeros(40, dtype=torch.int64)
    bank = Embedded(
        storage=None,  # type: ignore[arg-type]
        index=np.arange(40),
        features=features,
        label=label,
        kappa=None,
    )
    rows = torch.tensor([3, 7, 0, *range(20, 32)])
    similarity, position = _nearest(bank.pick(rows.numpy()), bank, 5, rows)
    assert position.shape == similarity.shape == (len(rows), 5)
    assert not (position == rows[:, None]).any()
    assert position[0, 0] == 7
    assert position[1, 0] == 3
    assert (similarity.diff(dim=1) <= 0).all()


def test_broken_images_are_left_out(finished: Config, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(finished.data, data)
    for broken in (data / "train" / "bee" / "05.JPEG", data / "val" / "cow" / "03.JPEG"):
        broken.write_bytes(broken.read_bytes()[:-60])
    with pytest.raises(UserError, match="05.JPEG cannot be decoded.*--on-bad-image skip"):
        report([finished.out], data=data, options=CPU)
    page = read(report([finished.out], data=data, options=replace(CPU, on_bad_image="skip")))
    assert len(page.images["jpegs"]) == 23
    assert "96 of 3 classes" in page.text  # of the run's log, not of this data
    assert page.text.count("cannot be decoded") == 2


def test_several_runs_share_the_charts(finished: Config, tmp_path: Path) -> None:
    other = replace(finished, out=tmp_path / "twin" / "run", seed=1)
    pretrain(other)
    page = read(report([finished.out, other.out], out=tmp_path / "new" / "both.html", options=CPU))
    mine, twin = (f"{config.out.parent.name}/run" for config in (finished, other))
    traces = page.charts["loss"]["data"]
    assert len({trace["line"]["color"] for trace in traces}) == 2
    assert [trace["showlegend"] for trace in traces] == [True, True]
    assert traces[1]["name"] == twin
    assert mine in page.text
    # kNN: color tells the run, dashes tell k.
    knn = page.charts["knn"]["data"]
    assert [trace["name"].rpartition(", ")[2] for trace in knn] == ["k 5", "k 20"] * 2
    assert knn[0]["line"]["color"] == knn[1]["line"]["color"] != knn[2]["line"]["color"]
    assert knn[0]["line"]["dash"] == knn[2]["line"]["dash"] != knn[1]["line"]["dash"]
    assert sum(a.get("class") == "differs" for t, a in page.tags if t == "tr") == 2  # out, seed
    one = read(report([finished.out], options=CPU))
    assert not any(a.get("class") == "differs" for t, a in one.tags if t == "tr")
    assert [trace["showlegend"] for trace in one.charts["loss"]["data"]] == [False]


@pytest.mark.parametrize(
    ("std", "state", "sentence"),
    [
        (0.98, "healthy", "Healthy"),
        (0.3, "half collapsed", "Half collapsed"),
        (0.02, "collapsed", "Collapsed"),
    ],
)
def test_the_diagnosis(tmp_path: Path, std: float, state: str, sentence: str) -> None:
    lines = [line(1), line(2, collapse_std=std)]
    folder = fake_run(tmp_path / "run", catalogue.recipe("demo"), lines)
    assert diagnosis(read_runs([folder])[0])[0] == state
    page = read(report([folder]))
    assert sentence in page.text
    assert "is no checkpoint" in page.text or "has no checkpoint" in page.text
    frames = [a["class"] for _, a in page.tags if (a.get("class") or "").startswith("diagnosis")]
    assert frames == [f"diagnosis {state}"]


def test_images_that_are_told_apart_have_no_equal_outputs(tmp_path: Path) -> None:
    """Without a BatchNorm in the head, healthy networks begin with a small spread."""
    for name, values, state in (
        ("a", {}, "collapsed"),
        ("b", {"contrast_accuracy": 0.9}, "healthy"),
        ("c", {"contrast_accuracy": 0.001, "loss": -0.95}, "collapsed"),  # the method says so
    ):
        lines = [line(1, collapse_std=0.05, **values)]
        folder = fake_run(tmp_path / name, catalogue.recipe("demo"), lines)
        assert diagnosis(read_runs([folder])[0])[0] == state


def test_a_small_batch_has_a_higher_collapse_threshold(tmp_path: Path) -> None:
    config = replace(catalogue.recipe("imagenette"), batch_size=64)
    for name, loss, state in (("a", -0.99, "collapsed"), ("b", -0.5, "half collapsed")):
        folder = fake_run(tmp_path / name, config, [line(1, collapse_std=0.26, loss=loss)])
        run = read_runs([folder])[0]
        assert diagnosis(run)[0] == state
        told = "below 0.38 is collapsed at batch 64" in diagnosis(run)[1]
        assert told == (state == "collapsed")  # 0.26 is below 0.38


def test_methods_that_compare_images_are_judged_by_what_they_find(tmp_path: Path) -> None:
    for name, recipe, values, state in (
        ("a", "moco-v2-imagenette", {"collapse_std": 0.07, "contrast_accuracy": 0.9}, "healthy"),
        ("b", "moco-v2-imagenette", {"collapse_std": 0.07, "contrast_accuracy": 0.0}, "collapsed"),
        ("c", "moco-v2-imagenette", {"collapse_std": 0.0, "contrast_accuracy": 1.0}, "collapsed"),
        ("d", "moco-v2-imagenette", {"collapse_std": float("nan")}, "unknown"),
        ("e", "supcon-imagenette", {"collapse_std": 0.3, "contrast_accuracy": 0.9}, "healthy"),
        ("f", "simclr-imagenette", {"collapse_std": 0.1, "contrast_accuracy": 0.0}, "collapsed"),
        ("g", "simclr-imagenette", {"collapse_std": 0.9, "contrast_accuracy": 0.0}, "healthy"),
    ):
        run = read_runs([fake_run(tmp_path / name, catalogue.recipe(recipe), [line(1, **values)])])
        got, sentence = diagnosis(run[0])
        assert got == state, name
        if state == "healthy" and values["contrast_accuracy"]:
            assert sentence == "healthy: images are told apart (contrast_accuracy 0.90)"


def test_metrics_of_other_methods_have_small_charts(tmp_path: Path) -> None:
    odd = '<b>"&'
    demo = catalogue.recipe("demo")
    first = fake_run(
        tmp_path / "a",
        demo,
        [line(1, teacher_entropy=2.0, knn_top1_k5=9.0), line(2, **{odd: 1.0, "note": "text"})],
    )
    second = fake_run(tmp_path / "b", demo, [line(1, teacher_entropy=3.0), line(2)])
    page = read(report([first, second]))
    assert list(page.charts) == ["loss", "knn", "collapse-std"] + [
        f"metric-{name}" for name in ("teacher_entropy", odd)
    ]
    small = page.charts["metric-teacher_entropy"]
    assert [trace["y"] for trace in small["data"]] == [[2.0], [3.0]]
    assert small["layout"]["height"] < page.charts["loss"]["layout"]["height"]
    assert "teacher_entropy" in page.text
    assert ("div", {"class": "charts small"}) in page.tags
    places = [a["id"] for t, a in page.tags if t == "div" and a.get("class") == "plot"]
    assert places == [f"chart-{name}" for name in page.charts]
    assert "<" not in page.scripts["charts"]
    assert "b" not in [tag for tag, _ in page.tags]


def test_methods_share_no_axis_of_losses(tmp_path: Path) -> None:
    demo = catalogue.recipe("demo")
    other = replace(demo, method=ThrowawayConfig())
    accuracy = {"contrast_accuracy": 0.25, "top_accuracy": 25.0}
    runs = [
        fake_run(tmp_path / "a", demo, [line(1), line(2)]),
        fake_run(tmp_path / "b", other, [line(1, loss=9.2, **accuracy), line(2, loss=8.0)]),
        fake_run(tmp_path / "c", other, [line(1, loss=9.3), line(2, loss=8.5)]),
    ]
    page = read(report(runs))
    assert list(page.charts)[:3] == ["loss-simsiam", "loss-throwaway", "collapse-std"]
    own, others = page.charts["loss-simsiam"]["data"], page.charts["loss-throwaway"]["data"]
    assert [trace["y"] for trace in own] == [[-0.5, -0.5]]
    assert [trace["y"] for trace in others] == [[9.2, 8.0], [9.3, 8.5]]
    # A run has one color in all charts.
    colors = [trace["line"]["color"] for trace in page.charts["collapse-std"]["data"]]
    assert [trace["line"]["color"] for trace in [*own, *others]] == colors
    assert "Loss of throwaway" in page.text
    assert "Losses of different methods cannot be compared." in page.text
    share = page.charts["metric-contrast_accuracy"]["layout"]["yaxis"]
    assert (share["range"], share["tickformat"]) == ([0, 1], ".0%")
    assert "range" not in page.charts["metric-top_accuracy"]["layout"]["yaxis"]
    same = read(report(runs[1:], out=tmp_path / "same.html"))
    assert next(iter(same.charts)) == "loss"
    assert "cannot be compared" not in same.text
    assert " throwaway " in same.text


def test_captions_hold_for_every_method(tmp_path: Path) -> None:
    page = read(report([fake_run(tmp_path / "run", catalogue.recipe("demo"), [line(1)])]))
    captions = [a.get("aria-label") for _, a in page.tags if a.get("class") == "plot"]
    assert captions == ["Loss", "Collapse metric: std of z/|z| times √D; 1 is healthy, 0 collapsed"]
    page = read(report([fake_run(tmp_path / "other", catalogue.recipe("demo"), [bare_line(1)])]))
    assert list(page.charts) == ["loss"]


def test_the_diagnosis_follows_the_warning_of_the_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warning(_: type[SimSiam], metrics: Mapping[str, float], batch_size: int) -> str | None:
        return f"the queue is empty at batch {batch_size}." if metrics["queue"] == 0 else None

    monkeypatch.setattr(SimSiam, "warning", classmethod(warning))
    demo = replace(catalogue.recipe("demo"), batch_size=64)
    empty = fake_run(tmp_path / "empty", demo, [bare_line(1, queue=0)])
    assert diagnosis(read_runs([empty])[0]) == ("warning", "the queue is empty at batch 64")
    page = read(report([empty]))
    assert "The queue is empty at batch 64." in page.text
    assert ("p", {"class": "diagnosis warning"}) in page.tags
    spread = fake_run(tmp_path / "spread", demo, [line(1, queue=0, collapse_std=0.9)])
    assert diagnosis(read_runs([spread])[0])[0] == "warning"
    full = fake_run(tmp_path / "full", demo, [bare_line(1, queue=0), bare_line(2, queue=8)])
    state, sentence = diagnosis(read_runs([full])[0])
    assert state == "unknown"
    assert sentence == "no diagnosis: the method logs no collapse metric"


def test_long_curves_are_thinned_to_means(tmp_path: Path) -> None:
    lines = [line(n, loss=float(n % 2)) for n in range(1, 5001)]
    folder = fake_run(tmp_path / "run", catalogue.recipe("demo"), lines)
    epochs, values = read_runs([folder])[0].curve("loss")
    assert len(epochs) == len(values) <= 600
    assert epochs[-1] == 500
    assert np.mean(values) == pytest.approx(0.5, abs=0.01)
    assert "mean of several log lines" in read(report([folder])).text


def test_scores_before_any_log_line_have_their_epoch(finished: Config) -> None:
    (finished.out / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": step, "knn_top1_k5": 50.0}) + "\n" for step in (0, 6, 12))
    )
    run = read_runs([finished.out])[0]
    assert run.curve("knn_top1_k5")[0] == [0, 1, 2]
    assert diagnosis(run)[0] == "unknown"


def test_a_truncated_last_line_is_ignored(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", catalogue.recipe("demo"), [line(1), line(2)])
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo')
    assert len(read_runs([folder])[0].lines) == 2


def test_lines_that_no_run_has_written_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fake_run(tmp_path / "run", catalogue.recipe("demo"), [line(1), line(2)])
    (first, second) = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text(
        "\n".join(
            [
                "x" + first,
                first,
                "\0\0\0" + second,
                '{"loss": 1.0}',
                '{"step": NaN}',
                '{"step": -1}',
                '{"step": "3"}',
                '{"step": 1' + "0" * 5000 + "}",
                "[" * 100_000,
                json.dumps({"step": 3, "epoch": 0, "loss": 10**400, "lr": float("inf")}),
                second,
                "",
            ]
        )
    )
    (run,) = read_runs([folder])
    assert [values["step"] for values in run.lines] == [1, 3, 2]
    assert run.lines[1] == {"step": 3}
    noted = capsys.readouterr().err
    assert f"left out: 8 lines of {folder / 'metrics.jsonl'} that no run has written" in noted


@pytest.mark.parametrize("name", ["metrics.jsonl", "log.txt", "summary.json"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_report_neither_follows_a_link_nor_waits_for_a_pipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    folder = fake_run(tmp_path / "run", catalogue.recipe("demo"), [line(1)])
    (secret := tmp_path / "secret").write_text('{"step": 1, "secret": 5}\n')
    (folder / name).unlink(missing_ok=True)
    if kind == "link":
        (folder / name).symlink_to(secret)
    elif kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).mkdir()
    what = {"link": "a link", "pipe": "a named pipe", "folder": "a folder"}[kind]
    if name == "log.txt":
        (run,) = read_runs([folder])
        assert not run.log
        assert f"left out: {folder / name} is {what}" in capsys.readouterr().err
    else:
        with pytest.raises(UserError, match=f"{name} is {what}, not a file: remove it"):
            read_runs([folder])


def test_wrong_input_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo = catalogue.recipe("demo")
    good = fake_run(tmp_path / "good", demo, [line(1)])
    empty = fake_run(tmp_path / "empty", demo, [])
    damaged = fake_run(tmp_path / "damaged", demo, [line(1)])
    (damaged / "metrics.jsonl").write_text("no JSON")
    young = fake_run(tmp_path / "young", demo, [line(1)])
    (young / "summary.json").unlink()
    strange = fake_run(tmp_path / "strange", demo, [line(1)])
    (strange / "summary.json").write_text("{")
    (tmp_path / "no-run").mkdir()
    for argv, message in (
        ([tmp_path / "nowhere"], f"there is no run {tmp_path / 'nowhere'}: pass a folder"),
        ([tmp_path / "no-run"], f"expected {tmp_path / 'no-run' / 'metrics.jsonl'}"),
        ([empty], "metrics.jsonl is empty: wait until"),
        ([damaged], "metrics.jsonl has no line of a run: wait until"),
        ([young], "young has no config yet: expected checkpoints"),
        ([strange], "summary.json is damaged"),
        ([good] * 8, "the report has colors for 1 to 7 runs, not for 8: pass fewer"),
        ([good, "--out", tmp_path], f"--out {tmp_path} is a folder"),
        ([good, "--out", good / "log" / "x.html"], "cannot write --out"),
        ([], "RUN"),
    ):
        (good / "log").write_text("")
        assert main(["report", *map(str, argv)]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert message in lines[0]
    assert not (good / "report.html").exists()


@pytest.mark.parametrize("module", ["plotly", "sklearn"])
def test_a_missing_library_is_named_with_its_install_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r"report needs .*: pip install 'fastsimsiam\[report\]'"):
        report([tmp_path])


def test_importing_loads_neither_plotly_nor_scikit_learn() -> None:
    parts = ("charts", "flat_map", "neighbors", "page", "repeat", "sections", "report")
    names = ", ".join(f"fastsimsiam.report.{part}" for part in parts)
    code = (
        f"import sys, fastsimsiam.commands.report, {names}\n"
        "assert not {'plotly', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_map_needs_images_that_differ() -> None:
    assert flat_map(np.ones((50, 4), np.float32))[0] is None
    assert flat_map(np.eye(9, dtype=np.float32))[0] is None
    rng = np.random.default_rng(0)
    centers = np.repeat(np.eye(3, 16), 20, axis=0)
    features = (centers + 0.05 * rng.normal(size=centers.shape)).astype(np.float32)
    position, why_not = flat_map(features)
    assert why_not == ""
    assert position is not None
    same = flat_map(features)[0]
    assert same is not None
    assert np.array_equal(position, same)
    distance = np.linalg.norm(position[:, None] - position[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (distance.argmin(axis=1) // 20 == np.arange(60) // 20).all()


def test_thumbnails_are_made_smaller_to_fit(class_folders: Path) -> None:
    storage = open_split(class_folders, "train")
    index = list(range(12))
    best = thumbnails(storage, index, side=56, fraction=1.0, most_letters=10**9)
    size = sum(map(len, best))
    fewer = thumbnails(storage, index, side=56, fraction=1.0, most_letters=size - 1)
    assert sum(map(len, fewer)) < size


def test_two_thousand_thumbnails_leave_the_page_below_ten_megabytes() -> None:
    from plotly.offline import get_plotlyjs

    from fastsimsiam.report import report

    gallery = 12 * 7 * 7_000
    rest = 700_000  # views, curves, points of the map, confusion
    assert len(get_plotlyjs()) + report._MAP_LETTERS + gallery + rest < 10e6


def test_few_of_many_classes_are_shown(finished: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastsimsiam.report.report._CONFUSION_CLASSES", 2)
    monkeypatch.setattr("fastsimsiam.report.charts._LEGEND_CLASSES", 2)
    page = read(report([finished.out], options=CPU))
    assert "the 2 classes with the most errors" in page.text
    assert np.shape(page.charts["confusion"]["data"][0]["z"]) == (2, 2)
    (points,) = page.charts["map"]["data"]
    assert len(points["x"]) == len(points["customdata"]) == len(points["marker"]["color"]) == 24


def test_no_more_points_than_a_curve_may_have() -> None:
    assert report_runs._MOST_POINTS == 600


def _needed(reason: str) -> None:
    if os.environ.get("FASTSIMSIAM_REQUIRE_BROWSER"):
        pytest.fail(f"{reason}, and FASTSIMSIAM_REQUIRE_BROWSER is set")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _needed("playwright is not installed: make browser")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        _needed("there is no chromium: make browser")
    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


def test_in_a_browser(browser: Any, finished: Config) -> None:
    metrics = finished.out / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"lr":', '"teacher_entropy": 0.5, "lr":'))
    file = report([finished.out], options=CPU)
    messages: list[str] = []
    requests: list[str] = []
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.on("console", lambda message: messages.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: messages.append(f"error: {error}"))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(file.resolve().as_uri())
    page.wait_for_selector("#chart-confusion .heatmaplayer image")
    curves = [*CURVES, "metric-teacher_entropy"]
    for name in curves:
        marks = page.locator(f"#chart-{name} .scatterlayer .trace path")
        assert marks.count() > 0, name
        assert marks.first.bounding_box() is not None
    assert page.locator("#chart-map .scatterlayer .point").count() == 24
    assert page.locator("#chart-confusion .heatmap-label").count() > 0
    # The tip shows the thumbnail of the point under the pointer.
    point = page.locator("#chart-map .scatterlayer .point").first
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    assert page.locator("#tip").is_hidden()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
    page.wait_for_selector("#tip:not([hidden])")
    assert page.evaluate("document.querySelector('#tip img').naturalWidth") == 56
    assert page.locator("#tip p").inner_text().split("\n")[0] in ("ant", "bee", "cow")
    place = page.locator("#chart-map").bounding_box()
    page.mouse.move(place["x"] + 2, place["y"] - 20)
    page.wait_for_selector("#tip", state="hidden")
    # A phone, and paper.
    for width in (390, 320):
        page.set_viewport_size({"width": width, "height": 844})
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for name in curves:
            box = page.locator(f"#chart-{name} .main-svg").first.bounding_box()
            assert box["x"] + box["width"] <= width, name
    page.emulate_media(media="print")
    page.pdf(path=finished.out / "report.pdf", format="A4")
    assert (finished.out / "report.pdf").stat().st_size > 20_000
    page.emulate_media(media="screen")
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    # No button that uploads a chart, no console message, no request.
    titles = page.locator("#chart-loss .modebar-btn").evaluate_all(
        "buttons => buttons.map(button => button.dataset.title)"
    )
    assert titles == ["Download plot as a PNG", "Zoom", "Pan", "Reset axes"]
    assert messages == []
    assert {url.split(":")[0] for url in requests} <= {"file", "data", "blob"}
    page.close()
