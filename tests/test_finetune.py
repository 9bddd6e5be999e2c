"""Fine-tuning on a share of the labels and distillation: which labels, which layers, and resuming."""

import copy
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import require, save_run
from PIL import Image
from torch import Tensor, nn

from fastsimsiam.cli import main
from fastsimsiam.config.evaluation import EvalOptions, LinearConfig
from fastsimsiam.config.methods import MoCoConfig, SimCLRConfig, SimSiamConfig
from fastsimsiam.config.optimizer import OptimizerConfig
from fastsimsiam.config.run import Config
from fastsimsiam.config.supervised import DistillConfig, FinetuneConfig
from fastsimsiam.config.views import NormalizeConfig
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate import classifier_training
from fastsimsiam.evaluate import distill as distill_module
from fastsimsiam.evaluate.classifier import hidden_layers, load_classifier, new_classifier
from fastsimsiam.evaluate.context import open_eval_context
from fastsimsiam.evaluate.distill import distill, soft_cross_entropy
from fastsimsiam.evaluate.finetune import finetune
from fastsimsiam.evaluate.knn import knn
from fastsimsiam.evaluate.labels import choose_labeled, write_list
from fastsimsiam.evaluate.linear import TRAINING_VIEW
from fastsimsiam.evaluate.linear_probe import linear
from fastsimsiam.evaluate.pretrained import load_backbone
from fastsimsiam.evaluate.supervised import SupervisedState, Training, start, train
from fastsimsiam.evaluate.trained_method import trained_method
from fastsimsiam.loaders.base import Batch
from fastsimsiam.plan.batches import CenterPlan, TrainPlan
from fastsimsiam.storage.open import open_split

ON_CPU = EvalOptions(device="cpu", precision="fp32", loader="cpu", workers=1)
SGD = OptimizerConfig(lr=0.05, weight_decay=0.0, schedule="step")
QUICK = FinetuneConfig(labels="50%", epochs=2, batch_size=16, optimizer=SGD)


@pytest.fixture
def run(tiny_config: Config) -> Config:
    """A run of SimCLR with a projector of three layers."""
    config = replace(tiny_config, method=SimCLRConfig(projector_layers=3, hidden_dim=24))
    save_run(config, steps=(1,))
    return config


@pytest.fixture
def colored(tmp_path: Path) -> Path:
    """Three classes that differ in color: 32 and 8 images each."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 32), ("val", 8)):
        for label, name in enumerate(("ant", "bee", "cat")):
            folder = tmp_path / "colored" / split / name
            folder.mkdir(parents=True)
            for image in range(number):
                pixels = rng.integers(0, 120, (40, 40, 3), dtype=np.uint8)
                pixels[..., label] += 100
                Image.fromarray(pixels).save(folder / f"{image}.png")
    return tmp_path / "colored"


@pytest.mark.parametrize("share", ["1%", "10%", "37.5%", "100%"])
def test_a_share_takes_as_many_of_each_class(class_folders: Path, share: str) -> None:
    storage = open_split(class_folders, "train")
    chosen = choose_labeled(share, storage, 0)
    assert (np.diff(chosen) > 0).all()
    part = float(share[:-1]) / 100
    for label in range(len(storage.classes)):
        images = int((storage.label == label).sum())
        assert (storage.label[chosen] == label).sum() == max(1, round(part * images))


def test_a_share_depends_on_paths_and_seed_alone(class_folders: Path) -> None:
    storage = open_split(class_folders, "train")
    few, more = (choose_labeled(share, storage, 3) for share in ("10%", "40%"))
    assert set(few) < set(more)
    assert few.tolist() == choose_labeled("10%", storage, 3).tolist()
    assert few.tolist() != choose_labeled("10%", storage, 4).tolist()

    class Reversed:
        paths = storage.paths[::-1]
        label = storage.label[::-1]
        classes = storage.classes

    turned = choose_labeled("10%", Reversed(), 3)  # type: ignore[arg-type]
    assert {Reversed.paths[i] for i in turned} == {storage.paths[i] for i in few}


def test_a_list_names_images_by_path_or_by_name(class_folders: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(class_folders / "train", data)
    first = min((data / "bee").iterdir())
    first.rename(first.with_name("alone.jpg"))
    storage = open_split(data, "train")
    alone = [Path(path).name for path in storage.paths].index("alone.jpg")
    file = tmp_path / "list.txt"
    file.write_text(f"{storage.paths[5]}\n\n  alone.jpg  \n{storage.paths[5]}\n")
    assert choose_labeled(str(file), storage, 0).tolist() == sorted({5, alone})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("0%", "--labels is 0%: give more than 0%, at most 100%"),
        ("101%", "--labels is 101%"),
        ("10", "--labels is 10: give a share as 10%, or a file"),
        ("/nowhere/list.txt", "/nowhere/list.txt"),
        ("{unknown}", "lists ant/none.jpg and 1 others: give paths of training images, as ant/"),
        ("{empty}", "lists no image"),
    ],
)
def test_labels_that_choose_nothing_are_one_line(
    labels: str, message: str, class_folders: Path, tmp_path: Path
) -> None:
    (tmp_path / "unknown").write_text("ant/none.jpg\nant/neither.jpg\n")
    (tmp_path / "empty").write_text("\n")
    storage = open_split(class_folders, "train")
    for name in ("unknown", "empty"):
        labels = labels.replace(f"{{{name}}}", str(tmp_path / name))
    with pytest.raises(UserError, match=message):
        choose_labeled(labels, storage, 0)


def test_plans_of_some_images_show_no_other(class_folders: Path) -> None:
    """Not even in place of broken ones: their labels would be used."""
    storage = open_split(class_folders, "train")
    only = choose_labeled("30%", storage, 0)
    common: dict[str, Any] = {
        "label": storage.label,
        "sizes": storage.sizes,
        "image_size": 32,
        "only": only,
    }
    plan = TrainPlan(seed=0, specs=(TRAINING_VIEW,), batch_size=8, **common)
    assert plan.num_batches == len(only) // 8
    for epoch in range(3):
        seen = np.concatenate([plan.index(epoch, step) for step in range(plan.num_batches)])
        assert len(set(seen)) == len(seen)
        assert set(seen) <= set(only)
        batch = plan.batch(epoch, 0)
        assert batch.label.tolist() == storage.label[batch.index].tolist()
        drawn = {int(plan.replacement(epoch, 1, attempt).index[0]) for attempt in range(40)}
        assert drawn <= set(only)
        assert len(drawn) > 5
    center = CenterPlan(batch_size=10, fraction=0.875, **common)
    assert center.num_batches == -(-len(only) // 10)
    shown = np.concatenate([center.index(0, step) for step in range(center.num_batches)])
    assert shown.tolist() == only.tolist()
    drawn = {int(center.replacement(0, 1, attempt).index[0]) for attempt in range(40)}
    assert drawn <= set(only)
    assert len(drawn) > 5


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_the_classifier_is_on_a_layer_of_the_projector(layers: int, run: Config) -> None:
    with open_eval_context(run.out, run.data, ON_CPU) as context:
        classifier = new_classifier(context, hidden_layers(context)[:layers]).eval()
        method = trained_method(context.pretrained)
    assert method is not None
    images = torch.randn(4, 3, 32, 32)
    h = method.backbone(images)
    assert isinstance(method.projector, nn.Sequential)
    for module in method.projector[: 3 * layers]:  # a linear layer, its norm and its ReLU
        h = module(h)
    torch.testing.assert_close(classifier(images), classifier.layer(h), rtol=1e-4, atol=1e-5)
    assert classifier.layer.in_features == (24 if layers else 128)


def test_what_has_no_such_layer_is_one_line(
    run: Config, tiny_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--data", str(run.data), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["finetune", str(run.out), *argv, "--head-layers", "3"]) == 2
    assert "has a projector of 2 hidden layers: give 0 to 2" in capsys.readouterr().err
    linear_projector = MoCoConfig(projector_layers=1, queue_size=8, bn_group_size=0)
    other = replace(tiny_config, out=tmp_path / "moco", method=linear_projector)
    save_run(other)
    assert main(["finetune", str(other.out), *argv, "--head-layers", "1"]) == 2
    assert "has a projector of 0 hidden layers: give 0" in capsys.readouterr().err


def test_from_a_run_to_a_classifier_and_a_student(
    run: Config, colored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = replace(run, data=colored)
    out, files = tmp_path / "tuned", [tmp_path / name for name in ("a.json", "b.json")]
    common = ["--data", str(run.data), "--device", "cpu", "--batch-size", "16"]
    common += ["--optimizer.name", "sgd", "--optimizer.lr", "1"]
    argv = ["finetune", str(run.out), "--out", str(out), *common, "--epochs", "12"]
    argv += ["--labels", "50%", "--json", str(files[0])]
    assert main(argv) == 0
    tuned = json.loads(files[0].read_text())
    assert (tuned["labeled"], tuned["head_layers"], tuned["train_images"]) == (48, 1, 96)
    assert tuned["losses"][-1] < 0.5 * tuned["losses"][0]
    assert tuned["top1"] > 90
    assert len((out / "labels.txt").read_text().splitlines()) == 48
    assert "fine-tuned on 48 labels, 1 projector layers kept: top-1" in capsys.readouterr().out

    # Its list gives the same images, its backbone is read by every command.
    again = choose_labeled(str(out / "labels.txt"), open_split(run.data, "train"), 7)
    assert len(again) == 48
    stored = load_classifier(out)
    with pytest.warns(UserWarning, match="was trained on 48 labels"):
        weights = load_backbone(out / "finetune.pt").state_dict()
    for key, value in stored.classifier.backbone.state_dict().items():
        assert torch.equal(weights[key], value)
    assert not torch.equal(
        weights["conv1.weight"], load_backbone(run.out).state_dict()["conv1.weight"]
    )
    assert knn(out / "finetune.pt", run.data, k=(5,), options=ON_CPU).step == 1

    student = ["distill", str(out), "--out", str(tmp_path / "student"), *common, "--epochs", "6"]
    student += ["--student", str(run.out), "--label-weight", "0.5", "--json", str(files[1])]
    student += ["--optimizer.warmup-epochs", "0", "--optimizer.weight-decay", "0"]
    assert main(student) == 0
    distilled = json.loads(files[1].read_text())
    assert distilled["teacher_top1"] == pytest.approx(tuned["top1"])
    assert distilled["losses"][-1] < 0.7 * distilled["losses"][0]
    assert distilled["top1"] > 90
    assert distilled["labeled"] == 48
    printed = capsys.readouterr().out
    assert f"teacher {tuned['top1']:.2f} %" in printed
    # A student is a teacher, too.
    assert load_classifier(tmp_path / "student").classes == stored.classes


def test_only_the_labels_that_were_chosen_are_used(
    run: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_split(run.data, "train")
    chosen = set(choose_labeled(QUICK.labels, storage, QUICK.seed).tolist())
    seen: list[int] = []
    taken = classifier_training.intact_batches

    def watched(loader: Any, plan: Any, epoch: int) -> Iterator[Any]:
        for batch in taken(loader, plan, epoch):
            seen.extend(batch.index.tolist())
            assert batch.label.tolist() == storage.label[batch.index].tolist()
            yield batch

    monkeypatch.setattr(classifier_training, "intact_batches", watched)
    finetune(run.out, run.data, tmp_path / "out", config=QUICK, options=ON_CPU)
    assert set(seen) == chosen
    assert len(seen) == 2 * len(chosen)


class StoppedError(Exception):
    """Stands for a signal."""


def stopping(state: SupervisedState, *args: Any, after_epoch: Any, **options: Any) -> None:
    """A loop that ends after two epochs."""

    def interrupted(now: SupervisedState) -> None:
        after_epoch(now)
        if now.epoch == 2:
            raise StoppedError

    train(state, *args, after_epoch=interrupted, **options)


@pytest.mark.parametrize("optimizer", [SGD, FinetuneConfig.optimizer], ids=["sgd", "lars"])
@pytest.mark.parametrize("name", ["finetune", "distill"])
def test_resumed_it_is_the_same_to_the_bit(
    name: str, optimizer: OptimizerConfig, run: Config, tmp_path: Path
) -> None:
    config = replace(QUICK, epochs=3, optimizer=optimizer)
    student = DistillConfig(epochs=3, batch_size=32, optimizer=optimizer)
    finetune(run.out, run.data, tmp_path / "teacher", config=config, options=ON_CPU)

    def begin(out: Path, resume: bool = False, options: EvalOptions = ON_CPU, seed: int = 0) -> Any:
        common: dict[str, Any] = {"resume": resume, "options": options}
        if name == "finetune":
            own = replace(config, seed=seed)
            return finetune(run.out, run.data, out, config=own, **common)
        own_student = replace(student, seed=seed)
        return distill(tmp_path / "teacher", run.data, out, config=own_student, **common)

    whole = begin(tmp_path / "whole")
    parts = tmp_path / "parts"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier_training, "train", stopping)
        with pytest.raises(StoppedError):
            begin(parts)
    with pytest.raises(UserError, match="already holds a .*: pass --resume"):
        begin(parts)
    with pytest.raises(UserError, match=r"was made with another image_size \(32 -> 48\): pass"):
        begin(parts, resume=True, options=replace(ON_CPU, image_size=48))
    with pytest.raises(UserError, match=r"was made with another .*seed \(0 -> 5\)"):
        begin(parts, resume=True, seed=5)
    trained: list[int] = []
    taken = classifier_training.crops

    def counted(context: Any, plan: Any, epoch: int) -> Iterator[Any]:
        trained.append(epoch)
        return taken(context, plan, epoch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier_training, "crops", counted)
        resumed = begin(parts, resume=True)
    assert trained == [2]  # it goes on instead of starting again
    assert resumed.losses == whole.losses
    assert (resumed.top1, resumed.top5) == (whole.top1, whole.top5)
    states = [torch.load(result.file, weights_only=True)["network"] for result in (whole, resumed)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_dropout_goes_on_where_it_stopped() -> None:
    """Its draws are of torch's generator, which is in the state."""
    kept: list[dict[str, Any]] = []

    def begin() -> SupervisedState:
        torch.manual_seed(0)
        return start(nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 3)), SGD, torch.device("cpu"))

    def go(state: SupervisedState) -> None:
        train(
            state,
            lambda epoch: iter([torch.ones(4, 8)] * 3),
            lambda batch: state.network(batch).square().mean(),
            Training(epochs=2, batch_size=4, optimizer=SGD),
            steps_per_epoch=3,
            after_epoch=lambda now: kept.append(copy.deepcopy(now.state_dict())),
        )

    whole, resumed = begin(), begin()
    go(whole)
    torch.manual_seed(9)
    resumed.load_state_dict(kept[0])
    go(resumed)
    assert resumed.losses == whole.losses
    assert torch.equal(kept[-1]["network"]["1.weight"], kept[1]["network"]["1.weight"])


def test_the_loss_of_a_student_is_the_papers() -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 5, 4))
    for temperature in (0.1, 1.0, 3.0):
        soft = np.exp(teacher / temperature)
        soft /= soft.sum(axis=1, keepdims=True)
        log_p = student / temperature
        log_p = log_p - np.log(np.exp(log_p).sum(axis=1, keepdims=True))
        loss = soft_cross_entropy(torch.tensor(student), torch.tensor(teacher), temperature)
        np.testing.assert_allclose(loss, -(soft * log_p).sum(axis=1))


class Fixed(nn.Module):
    """Logits that do not depend on the images."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        return self.logits


def test_labels_count_for_the_images_that_have_one() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 3, generator=generator)
    label, known = torch.tensor([0, 1, 2, 0]), torch.tensor([True, False, False, True])
    soft = soft_cross_entropy(student, teacher, 1.0)
    hard = F.cross_entropy(student, label, reduction="none")

    def loss(weight: float) -> Tensor:
        config = DistillConfig(label_weight=weight)
        batch = Batch(index=torch.arange(4), label=label, crops=(), photometric={})
        view = torch.zeros(4, 3, 2, 2)
        return distill_module._loss(Fixed(student), Fixed(teacher), view, batch, known, config)

    torch.testing.assert_close(loss(0.0), soft.mean())
    expected = torch.where(known, 0.75 * soft + 0.25 * hard, soft).mean()
    torch.testing.assert_close(loss(0.25), expected)


def test_a_smaller_student_begins_at_random(run: Config, tmp_path: Path) -> None:
    finetune(run.out, run.data, tmp_path / "teacher", config=QUICK, options=ON_CPU)
    config = DistillConfig(student_arch="two_layers", epochs=1, batch_size=32, optimizer=SGD)
    result = distill(
        tmp_path / "teacher", run.data, tmp_path / "student", config=config, options=ON_CPU
    )
    student = load_classifier(tmp_path / "student")
    assert student.recorded.arch == "two_layers"
    assert student.recorded.image_size == 32
    assert result.student is None
    with pytest.raises(UserError, match="--student-arch is two_layers, but the student begins"):
        distill(
            tmp_path / "teacher",
            run.data,
            tmp_path / "other",
            student=run.out,
            config=config,
            options=ON_CPU,
        )


def test_a_student_sees_the_teachers_images(run: Config, tmp_path: Path) -> None:
    """Their normalization and size, whatever the student's weights were trained with."""
    pixels = NormalizeConfig(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    options = replace(ON_CPU, image_size=48, mean=pixels.mean, std=pixels.std)
    finetune(run.out, run.data, tmp_path / "teacher", config=QUICK, options=options)
    seen: list[tuple[NormalizeConfig, int]] = []
    taken = classifier_training.crops

    def recorded(context: Any, *args: Any) -> Iterator[Any]:
        seen.append((context.pretrained.normalize, context.config.image_size))
        return taken(context, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier_training, "crops", recorded)
        distill(
            tmp_path / "teacher",
            run.data,
            tmp_path / "student",
            student=run.out,
            config=DistillConfig(epochs=1, batch_size=32, optimizer=SGD),
            options=ON_CPU,
        )
    assert seen == [(pixels, 48)]


def test_what_is_no_teacher_is_one_line(
    run: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune(run.out, run.data, tmp_path / "teacher", config=QUICK, options=ON_CPU)
    other = tmp_path / "data"
    for split in ("train", "val"):
        for source in ("ant", "bee"):
            folder = other / split / f"{source}s"
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.symlink_to((run.data / split / source).resolve())
    (checkpoint,) = (run.out / "checkpoints").glob("*.pt")
    for teacher, data, message in (
        (checkpoint, run.data, "is no classifier of finetune or distill"),
        (tmp_path / "nothing", run.data, "pass the folder that finetune --out has written"),
        (tmp_path / "teacher", other, "has other classes than those of"),
    ):
        argv = ["distill", str(teacher), "--data", str(data), "--out", str(tmp_path / "x")]
        assert main([*argv, "--device", "cpu"]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("fastsimsiam: error") == 1


@pytest.mark.parametrize("cached", [False, True])
def test_linear_takes_the_same_labels(cached: bool, run: Config, tmp_path: Path) -> None:
    config = LinearConfig(epochs=2, batch_size=16, optimizer="sgd")
    result = linear(run.out, run.data, config=config, cached=cached, labels="50%", options=ON_CPU)
    assert result.train_images == 48
    assert result.protocol.endswith("labels of 50%")
    whole = linear(run.out, run.data, config=config, cached=cached, options=ON_CPU)
    assert whole.train_images == 96
    assert whole.losses != result.losses


def test_a_default_batch_is_lowered_to_the_labeled_images(run: Config, tmp_path: Path) -> None:
    config = FinetuneConfig(labels="50%", epochs=1, optimizer=SGD)
    result = finetune(run.out, run.data, tmp_path / "out", config=config, options=ON_CPU)
    assert result.config.batch_size == 48
    assert result.notes == ("--batch-size is 48, all labeled images, instead of 256",)
    with pytest.raises(UserError, match="48 images, fewer than one batch of 64"):
        finetune(
            run.out,
            run.data,
            tmp_path / "other",
            config=replace(config, batch_size=64),
            options=ON_CPU,
        )


def test_with_all_labels_no_layer_of_the_projector_is_kept(run: Config, tmp_path: Path) -> None:
    config = replace(QUICK, labels="100%", epochs=1)
    result = finetune(run.out, run.data, tmp_path / "out", config=config, options=ON_CPU)
    assert (result.head_layers, result.labeled) == (0, 96)
    simsiam = SimSiamConfig(projector_layers=2, projector_dim=24, predictor_dim=8)
    other = replace(run, out=tmp_path / "simsiam", method=simsiam)
    save_run(other)
    config = replace(config, labels="50%")
    result = finetune(other.out, run.data, tmp_path / "second", config=config, options=ON_CPU)
    assert result.head_layers == 1


def test_known_labels_need_the_teachers_images(run: Config, tmp_path: Path) -> None:
    finetune(run.out, run.data, tmp_path / "teacher", config=QUICK, options=ON_CPU)
    data = tmp_path / "fewer"
    shutil.copytree(run.data, data)
    next((data / "train" / "ant").iterdir()).unlink()
    config = DistillConfig(epochs=1, batch_size=32, optimizer=SGD, label_weight=0.5)
    with pytest.raises(UserError, match="has other training images than those of"):
        distill(tmp_path / "teacher", data, tmp_path / "x", config=config, options=ON_CPU)
    distill(
        tmp_path / "teacher",
        data,
        tmp_path / "student",
        config=replace(config, label_weight=0.0),
        options=ON_CPU,
    )
    # The numbers in the student's file are those of the teacher's images, too.
    with pytest.raises(UserError, match="has other training images than those of"):
        distill(tmp_path / "student", data, tmp_path / "y", config=config, options=ON_CPU)


def test_a_batch_of_one_intact_image_is_left_out(run: Config, tmp_path: Path) -> None:
    """BatchNorm has no statistics of one image."""
    data = tmp_path / "data"
    shutil.copytree(run.data, data)
    broken = sorted((data / "train").rglob("*.jpg"))[::3]
    for file in broken:
        file.write_bytes(file.read_bytes()[:300])
    options = replace(ON_CPU, on_bad_image="skip")
    config = FinetuneConfig(labels="100%", epochs=1, batch_size=2, optimizer=SGD, head_layers=1)
    result = finetune(run.out, data, tmp_path / "out", config=config, options=options)
    assert len(result.bad_images) == len(broken)
    # A linear layer on some labels replaces what is broken among them.
    scored = linear(
        run.out,
        data,
        config=LinearConfig(epochs=1, batch_size=8, optimizer="sgd"),
        cached=True,
        labels="50%",
        options=options,
    )
    assert 20 < scored.train_images < 48


def test_an_unfinished_teacher_is_told(run: Config, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier_training, "train", stopping)
        config = replace(QUICK, epochs=3)
        with pytest.raises(StoppedError):
            finetune(run.out, run.data, tmp_path / "teacher", config=config, options=ON_CPU)
    student = DistillConfig(epochs=1, batch_size=32, optimizer=SGD)
    result = distill(
        tmp_path / "teacher", run.data, tmp_path / "out", config=student, options=ON_CPU
    )
    assert "is not finished (2 of 3 epochs): finetune --resume ends it" in result.notes[-1]


def test_lists_of_labels_have_any_names(class_folders: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(class_folders / "train", data)
    first, second, third = sorted((data / "bee").iterdir())[:3]
    first.rename(first.with_name("a\u2028b.jpg"))
    second.rename(second.with_name(" blank .jpg"))
    third.rename(third.with_name("\udce9.jpg"))
    storage = open_split(data, "train")
    file = tmp_path / "list.txt"
    write_list(np.arange(len(storage)), storage, file)
    assert choose_labeled(str(file), storage, 0).tolist() == list(range(len(storage)))
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert len(choose_labeled(str(file), storage, 0)) == len(storage)
    with pytest.raises(UserError, match="is another list: give another --out, or remove it"):
        write_list(np.arange(3), storage, file)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["finetune", "{run}", "--optimizer.warmup-epochs", "40"], "is not within --epochs 30"),
        (["distill", "{teacher}", "--epochs", "3"], "give --optimizer.warmup-epochs 0.3"),
        (["distill", "{teacher}", "--student-arch", "nothing"], "--student-arch nothing is not"),
    ],
)
def test_what_cannot_be_trained_is_one_line(
    argv: list[str], message: str, run: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune(run.out, run.data, tmp_path / "teacher", config=QUICK, options=ON_CPU)
    places = {"{run}": str(run.out), "{teacher}": str(tmp_path / "teacher")}
    words = [places.get(word, word) for word in argv]
    capsys.readouterr()
    assert main([*words, "--data", str(run.data), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_card_of_fine_tuned_weights_says_so(run: Config, tmp_path: Path) -> None:
    finetune(run.out, run.data, tmp_path / "tuned", config=QUICK, options=ON_CPU)
    out = tmp_path / "weights.safetensors"
    assert main(["export", str(tmp_path / "tuned" / "finetune.pt"), str(out)]) == 0
    assert "Then trained on 48 labels." in out.with_name(f"{out.name}.md").read_text()


@pytest.mark.parametrize("loader", ["resident", "reference", "dali", "ffcv"])
def test_every_loader_shows_the_chosen_images(loader: str, run: Config, tmp_path: Path) -> None:
    if loader in ("dali", "ffcv"):
        require(loader)
    data = run.data
    if loader == "ffcv":
        data = tmp_path / "packed"
        data.mkdir()
        for split in ("train", "val"):
            assert main(["pack", str(run.data / split), str(data / f"{split}.beton")]) == 0
    losses = []
    for name, place in (("cpu", run.data), (loader, data)):
        options = replace(ON_CPU, loader=name)  # type: ignore[arg-type]
        result = finetune(run.out, place, tmp_path / name, config=QUICK, options=options)
        losses.append(result.losses)
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_in_bfloat16_the_last_layer_is_float32(run: Config, tmp_path: Path) -> None:
    options = replace(ON_CPU, precision="bf16")
    exact = finetune(run.out, run.data, tmp_path / "a", config=QUICK, options=ON_CPU)
    rough = finetune(run.out, run.data, tmp_path / "b", config=QUICK, options=options)
    assert rough.losses == pytest.approx(exact.losses, rel=0.05)
    assert rough.losses != exact.losses
    stored = torch.load(rough.file, weights_only=True)["network"]
    assert {value.dtype for value in stored.values()} <= {torch.float32, torch.int64}
