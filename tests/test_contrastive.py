"""SimCLR and SupCon: losses against independent code, and what is particular to the methods."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightly.loss import NTXentLoss as LightlyNTXent
from pytorch_metric_learning.losses import NTXentLoss, SupConLoss
from test_method_contract import backbone, some_views
from torch import Tensor, nn

from fastsimsiam.cli import main
from fastsimsiam.config.methods import SimCLRConfig, SupConConfig
from fastsimsiam.config.run import Config
from fastsimsiam.config.views import ViewSpec
from fastsimsiam.errors import UserError
from fastsimsiam.methods.base import Method
from fastsimsiam.methods.losses import nt_xent, sup_con
from fastsimsiam.methods.simclr import SimCLR
from fastsimsiam.methods.supcon import SupCon
from fastsimsiam.optim.schedule import peak_lr
from fastsimsiam.recipes import catalogue
from fastsimsiam.train.checks import fix_for_memory
from fastsimsiam.train.pretrain import pretrain

LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 3, 0])


def oracle(first: np.ndarray, second: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """L_out of arXiv 2004.11362, sum by sum in float64; NT-Xent if all labels are distinct."""
    rows = np.concatenate([first, second])
    classes = np.concatenate([labels, labels])
    z = [row / math.sqrt(float(row @ row)) for row in rows]
    total = 0.0
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i]
        positives = [p for p in others if classes[p] == classes[i]]
        normalizer = sum(math.exp(float(z[i] @ z[a]) / temperature) for a in others)
        total -= sum(
            math.log(math.exp(float(z[i] @ z[p]) / temperature) / normalizer) for p in positives
        ) / len(positives)
    return total / len(z)


def numeric_gradient(loss: Callable[[np.ndarray], float], at: np.ndarray) -> np.ndarray:
    """Central differences."""
    gradient = np.empty_like(at)
    for place in np.ndindex(at.shape):
        ahead, behind = at.copy(), at.copy()
        ahead[place] += 1e-5
        behind[place] -= 1e-5
        gradient[place] = (loss(ahead) - loss(behind)) / 2e-5
    return gradient


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("name", ["nt_xent", "sup_con"])
def test_loss_and_gradient_are_the_papers(name: str, temperature: float) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 6, 7))
    labels = np.arange(6) if name == "nt_xent" else np.array([0, 1, 0, 2, 0, 1])
    a, b = (torch.tensor(x, dtype=torch.float32, requires_grad=True) for x in (first, second))
    loss = (
        nt_xent(a, b, temperature)
        if name == "nt_xent"
        else sup_con(a, b, torch.tensor(labels), temperature)
    )[0]
    loss.backward()
    assert loss.item() == pytest.approx(oracle(first, second, labels, temperature), abs=1e-6)
    for got, expected in (
        (a, numeric_gradient(lambda x: oracle(x, second, labels, temperature), first)),
        (b, numeric_gradient(lambda x: oracle(first, x, labels, temperature), second)),
    ):
        np.testing.assert_allclose(got.grad, expected, atol=1e-6)


def test_losses_are_those_of_other_libraries() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 8, 16)
    both, numbers = torch.cat([first, second]), torch.arange(8)
    loss = nt_xent(first, second, 0.2)[0]
    torch.testing.assert_close(loss, LightlyNTXent(0.2)(first, second))
    torch.testing.assert_close(loss, NTXentLoss(0.2)(both, numbers.repeat(2)))
    supervised = sup_con(first, second, LABELS, 0.2)[0]
    torch.testing.assert_close(supervised, SupConLoss(0.2)(both, LABELS.repeat(2)))
    # With a class for each image both are one loss.
    torch.testing.assert_close(sup_con(first, second, numbers, 0.2), nt_xent(first, second, 0.2))


def test_equal_embeddings_are_a_uniform_choice() -> None:
    equal = torch.randn(1, 16, generator=torch.Generator().manual_seed(0)).repeat(8, 1)
    expected = pytest.approx(math.log(2 * 8 - 1), abs=1e-6)
    assert nt_xent(equal, 3 * equal, 0.1)[0].item() == expected
    assert sup_con(equal, 3 * equal, LABELS, 0.1)[0].item() == expected


def test_large_similarities_stay_finite() -> None:
    """Similarities of 1 / 0.001: their exponentials overflow, their differences do not."""
    z = torch.eye(8, requires_grad=True)
    for loss, _ in (nt_xent(z, z, 1e-3), sup_con(z, z, torch.arange(8), 1e-3)):
        assert loss.item() == pytest.approx(0, abs=1e-6)
        loss.backward()
    assert torch.isfinite(z.grad).all()


def test_accuracy_counts_the_views_whose_nearest_is_positive() -> None:
    first = torch.eye(8)
    second = torch.eye(8)
    assert nt_xent(first, second, 0.1)[1].item() == 1
    # Images 0 and 1 have changed their second views: 4 of 16 views find another image's.
    second = second[[1, 0, 2, 3, 4, 5, 6, 7]]
    assert nt_xent(first, second, 0.1)[1].item() == 12 / 16
    assert sup_con(first, second, torch.arange(8), 0.1)[1].item() == 12 / 16
    assert sup_con(first, second, torch.arange(8).clamp(min=1), 0.1)[1].item() == 1


def simclr(**options: object) -> SimCLR:
    """A small SimCLR with fixed weights."""
    torch.manual_seed(0)
    return SimCLR(backbone(), 12, SimCLRConfig(**({"projection_dim": 8} | options)))


def supcon(**options: object) -> SupCon:
    """A small SupCon with fixed weights."""
    torch.manual_seed(0)
    return SupCon(backbone(), 12, SupConConfig(**({"projection_dim": 8} | options)))


METHODS = {"simclr": simclr, "supcon": supcon}


@pytest.mark.parametrize("name", METHODS)
def test_similarities_are_float32_under_autocast(name: str) -> None:
    """The loss of the network's bfloat16 projections, as exact as in float32."""
    method = METHODS[name]()
    kept: list[Tensor] = []
    method.projector.register_forward_hook(lambda module, args, z: kept.append(z.detach()))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = method(some_views(), LABELS)
    (z,) = kept
    assert z.dtype == torch.bfloat16
    first, second = z.double().numpy().reshape(2, 8, 8)
    labels = np.arange(8) if name == "simclr" else LABELS.numpy()
    assert loss.item() == pytest.approx(oracle(first, second, labels, 0.1), abs=2e-6)
    loss.backward()
    assert all(p.grad is not None for p in method.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_batch_norm_sees_both_views_together(name: str) -> None:
    method = METHODS[name]()
    seen: list[Tensor] = []
    method.backbone[0].register_forward_hook(lambda module, args, out: seen.append(out.detach()))
    inputs: list[Tensor] = []
    method.backbone.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    dark, bright = (
        view.contiguous(memory_format=torch.channels_last) + shift
        for view, shift in zip(some_views(), (0.0, 3.0), strict=True)
    )
    method(views := (dark, bright), LABELS)
    assert [len(batch) for batch in inputs] == [16]
    assert torch.equal(inputs[0], torch.cat(views))
    assert inputs[0].is_contiguous(memory_format=torch.channels_last)
    norms = [m for m in method.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert all(norm.num_batches_tracked == 1 for norm in norms)
    assert len(norms) == (3 if name == "simclr" else 1)
    expected = 0.1 * seen[0].mean(dim=(0, 2, 3))
    torch.testing.assert_close(method.backbone[1].running_mean, expected)


def test_head_of_simclr() -> None:
    """No biases, BatchNorm after each layer, without offset after the last; weights of std 0.01."""
    for layers in (1, 2, 3):
        torch.manual_seed(0)
        method = SimCLR(nn.Identity(), 512, SimCLRConfig(projector_layers=layers))
        hidden = [nn.Linear, nn.BatchNorm1d, nn.ReLU] * (layers - 1)
        assert [type(m) for m in method.projector] == [*hidden, nn.Linear, nn.BatchNorm1d]
        linear = [m for m in method.projector if isinstance(m, nn.Linear)]
        assert [m.out_features for m in linear] == [512] * (layers - 1) + [128]
        for layer in linear:
            assert layer.bias is None
            assert layer.weight.std().item() == pytest.approx(0.01, rel=0.02)
        *inner, last = [m for m in method.projector if isinstance(m, nn.BatchNorm1d)]
        assert all(norm.bias is not None for norm in inner)
        assert last.bias is None
        assert last.weight is not None
    wide = SimCLR(nn.Identity(), 512, SimCLRConfig(hidden_dim=64))
    assert wide.projector[0].out_features == 64


def official_nt_xent(first: np.ndarray, second: np.ndarray, temperature: float) -> float:
    """The official code's: the means over the first and over the second views are added."""
    first, second = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second))
    total = 0.0
    for own, other in ((first, second), (second, first)):
        means = 0.0
        for i in range(len(own)):
            logits = np.concatenate([other @ own[i], np.delete(own, i, axis=0) @ own[i]])
            logits = logits / temperature
            means += math.log(float(np.exp(logits).sum())) - float(logits[i])
        total += means / len(own)
    return total


def test_scaled_loss_of_simclr_is_the_official_codes() -> None:
    method = simclr(loss_scale=2.0)
    kept: list[Tensor] = []
    method.projector.register_forward_hook(lambda module, args, z: kept.append(z.detach()))
    loss, metrics = method(some_views(), LABELS)
    first, second = kept[0].double().numpy().reshape(2, 8, 8)
    assert loss.item() == pytest.approx(official_nt_xent(first, second, 0.1), abs=2e-6)
    plain, same = simclr()(some_views(), LABELS)
    torch.testing.assert_close(loss, 2 * plain)
    torch.testing.assert_close(metrics, same)


def test_head_of_supcon() -> None:
    """Biases and no BatchNorm; the loss and its gradients times the scale."""
    method = SupCon(nn.Identity(), 512, SupConConfig())
    assert [type(m) for m in method.projector] == [nn.Linear, nn.ReLU, nn.Linear]
    assert [m.weight.shape for m in method.projector[::2]] == [(512, 512), (128, 512)]
    assert all(m.bias is not None for m in method.projector[::2])
    single = SupCon(nn.Identity(), 512, SupConConfig(projector_layers=1))
    assert [type(m) for m in single.projector] == [nn.Linear]
    scaled = supcon(loss_scale=0.1)(some_views(), LABELS)[0]
    torch.testing.assert_close(scaled, 0.1 * supcon()(some_views(), LABELS)[0])


def test_labels_matter_to_supcon_alone() -> None:
    other = LABELS.roll(1)
    assert simclr()(some_views(), LABELS)[0] == simclr()(some_views(), other)[0]
    assert supcon()(some_views(), LABELS)[0] != supcon()(some_views(), other)[0]


@pytest.mark.parametrize(("kind", "healthy"), [(SimCLR, 0.9), (SupCon, 0.06)])
def test_a_collapse_names_the_options_of_the_method(kind: type[Method], healthy: float) -> None:
    def warning(std: float, accuracy: float) -> str | None:
        metrics = {"loss": 5.5, "collapse_std": std, "contrast_accuracy": accuracy}
        return kind.warning(metrics, 128)

    assert warning(healthy, 0.0) is None
    told = warning(0.005, 0.002)
    assert told is not None
    assert "has collapsed" in told
    assert "method.temperature" in told
    assert "optimizer.lr" in told


def test_simclr_compares_with_the_level_of_chance() -> None:
    """Among 128 views of 64 images it is 1 / 127: three times that is more than chance."""

    def warning(accuracy: float, std: float = 0.25) -> str | None:
        metrics = {"loss": 4.8, "collapse_std": std, "contrast_accuracy": accuracy}
        return SimCLR.warning(metrics, 64)

    assert warning(1 / 127) is not None
    assert warning(0.03) is None
    assert warning(1 / 127, std=0.27) is None  # 3 / sqrt(128) is 0.265


def test_supcon_logs_the_accuracy_of_guessing() -> None:
    """Five, one, one and one of the images are of one class each; of two equal halves it is a half."""
    metrics = supcon()(some_views(), torch.tensor([0, 1, 0, 2, 0, 0, 3, 0]))[1]
    assert metrics["chance_accuracy"].item() == pytest.approx((25 + 3) / 64)
    halves = {"collapse_std": 0.005, "loss": 5.0, "chance_accuracy": 0.5}
    assert SupCon.warning({**halves, "contrast_accuracy": 0.6}, 64) is not None
    assert SupCon.warning({**halves, "contrast_accuracy": 0.8}, 64) is None
    many = {**halves, "chance_accuracy": 0.001}
    assert SupCon.warning({**many, "contrast_accuracy": 0.05}, 64) is None


def test_options_out_of_range_are_one_line() -> None:
    for kind in (SimCLRConfig, SupConConfig):
        with pytest.raises(UserError, match=r"^method.temperature is 0: give 0.001 or more$"):
            kind(temperature=0.0)
        with pytest.raises(UserError, match=r"^method.hidden_dim is 0: give 1 or more$"):
            kind(hidden_dim=0)
        with pytest.raises(UserError, match=r"^method.loss_scale is 0: give 1e-06 or more$"):
            kind(loss_scale=0.0)


@pytest.fixture
def contrastive(tiny_config: Config) -> Config:
    """A SimCLR run of twelve steps."""
    return replace(tiny_config, method=SimCLRConfig(projection_dim=16, temperature=0.5))


def test_parts_of_a_batch_are_refused(
    contrastive: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    message = "--accumulate is 2, but simclr compares all images of a batch with one another"
    with pytest.raises(UserError, match=message):
        pretrain(replace(contrastive, accumulate=2))
    assert main(["doctor", "--recipe", "simclr-imagenette", "--accumulate", "2"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    # Nor is it advised where the memory is too small.
    assert "--accumulate" not in fix_for_memory(contrastive)
    assert "--accumulate" in fix_for_memory(catalogue.recipe("imagenette"))


def test_views_of_two_sizes_are_refused(contrastive: Config) -> None:
    views = (ViewSpec(), ViewSpec(size=64))
    with pytest.raises(UserError, match="views are of 32 and 64 pixels, but simclr passes them"):
        pretrain(replace(contrastive, views=views))
    with pytest.raises(UserError, match="views is 3, but simclr is defined for 2"):
        pretrain(replace(contrastive, views=(ViewSpec(),) * 3))


@pytest.mark.parametrize("kind", ["folder", "packed", "without an image"])
def test_one_class_is_refused_where_classes_are_compared(
    kind: str, class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before training, in one line, by pretrain and the doctor."""
    data = tmp_path / "data"
    (data / "train").mkdir(parents=True)
    (data / "train" / "ant").symlink_to(class_folders / "train" / "ant")
    if kind == "packed":
        assert main(["pack", str(data / "train"), str(tmp_path / "train.beton")]) == 0
        (tmp_path / "train.beton.json").unlink()  # names of classes and images
        data = tmp_path / "train.beton"
    elif kind == "without an image":
        (data / "train" / "bee").mkdir()
    options = (
        f"--data {data} --arch tiny_resnet --image-size 32 --batch-size 16 --device cpu --workers 1 "
        "--compile off --precision fp32 --loader cpu"
    ).split()
    name = "0" if kind == "packed" else "ant"
    for command in (
        ["pretrain", "supcon-imagenette", "--out", str(tmp_path / "run")],
        ["doctor", "--recipe", "supcon-imagenette"],
    ):
        capsys.readouterr()
        assert main([*command, *options]) == 2
        error = capsys.readouterr().err
        assert f"all 32 images are of the class {name}, but supcon compares the classes" in error
        assert error.count("\n") == 1
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == ""


def test_two_classes_are_trained(tiny_config: Config) -> None:
    config = replace(tiny_config, method=SupConConfig(projection_dim=16), max_steps=2)
    assert pretrain(config).last["contrast_accuracy"] > 0


RANK = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from fastsimsiam.config.methods import SupConConfig
from fastsimsiam.methods.losses import nt_xent
from fastsimsiam.methods.supcon import SupCon

class Pair(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network
    def forward(self, views, labels):
        loss, accuracy = nt_xent(*self.network(torch.cat(views)).chunk(2), 0.2)
        return loss, {"contrast_accuracy": accuracy}

def run(rows, wrap, kinds=("nt_xent", "sup_con")):
    results = []
    for kind in kinds:
        torch.manual_seed(0)
        first = nn.Sequential(nn.Linear(6, 12), nn.Tanh())
        method = (
            Pair(nn.Sequential(first, nn.Linear(12, 8)))
            if kind == "nt_xent"
            else SupCon(first, 12, SupConConfig(projection_dim=8))
        )
        views = torch.randn(2, 8, 6)[:, rows]
        labels = torch.tensor([0, 1, 0, 2, 1, 0, 3, 0])[rows]
        wrapped = wrap(method)  # kept: without its wrapper nobody averages the gradients
        loss, metrics = wrapped(tuple(views), labels)
        loss.backward()
        gradients = {name: p.grad for name, p in method.named_parameters()}
        results.append((loss.detach(), metrics["contrast_accuracy"], gradients))
    return results

def compiled(method):
    return torch.compile(method, fullgraph=True, dynamic=False, backend="aot_eager")

if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    share = slice(4 * rank, 4 * rank + 4)
    eager = run(share, DistributedDataParallel)
    whole_graph = run(share, compiled, ["sup_con"])  # gathers with gradient and without
    for _, _, gradients in whole_graph:
        for gradient in gradients.values():
            dist.all_reduce(gradient)
            gradient /= 2
    torch.save(eager + whole_graph, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
"""


def test_two_ranks_have_the_loss_and_gradients_of_one(tmp_path: Path) -> None:
    """Half a batch each; the network has no BatchNorm, which would see another batch."""
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path)], env={**os.environ}
        )
        for rank in (0, 1)
    ]
    namespace: dict[str, object] = {"__name__": "rank"}
    exec(script.read_text(), namespace)
    expected = namespace["run"](slice(0, 8), lambda method: method)
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for number, (loss, accuracy, gradients) in enumerate([*expected, expected[1]]):
        parts = [rank[number] for rank in ranks]
        torch.testing.assert_close((parts[0][0] + parts[1][0]) / 2, loss)
        torch.testing.assert_close((parts[0][1] + parts[1][1]) / 2, accuracy)
        for part in parts:
            for name, gradient in gradients.items():
                torch.testing.assert_close(part[2][name], gradient, atol=1e-6, rtol=1e-5)


def test_recipes_are_the_published_ones() -> None:
    config = catalogue.recipe("simclr-imagenet-100ep")
    assert (config.epochs, config.batch_size, config.arch) == (100, 512, "resnet50")
    assert config.method == SimCLRConfig(
        temperature=0.1, loss_scale=2.0, projector_layers=2, projection_dim=128
    )
    view, other = config.views
    assert view == other
    assert (view.area, view.interpolation, view.jitter) == ((0.08, 1.0), "bicubic", 0.8)
    assert (view.brightness, view.contrast, view.saturation, view.hue) == (0.8, 0.8, 0.8, 0.2)
    assert (view.grayscale, view.blur, view.solarize) == (0.2, 0.5, 0.0)
    assert (config.normalize.mean, config.normalize.std) == ((0, 0, 0), (1, 1, 1))
    lars = config.optimizer
    assert (lars.name, lars.weight_decay, lars.exclude_bias_and_norm) == ("lars", 1e-6, True)
    assert (lars.schedule, lars.warmup_epochs, lars.trust) == ("step", 10, 1e-3)
    for name, epochs, batch, decay, layers, scale in (
        ("simclr-imagenet-200ep", 200, 512, 1e-6, 2, 2.0),
        ("simclr-imagenet-100ep-bs4096", 100, 4096, 1e-6, 2, 2.0),
        ("simclr-imagenet-100ep-3layers", 100, 4096, 1e-6, 3, 1.0),
        ("simclr-v2-imagenet-800ep", 800, 4096, 1e-4, 3, 2.0),
    ):
        config = catalogue.recipe(name)
        assert (config.epochs, config.batch_size) == (epochs, batch)
        assert config.optimizer.weight_decay == decay
        assert config.method == SimCLRConfig(projector_layers=layers, loss_scale=scale)
    for name, batch, decay, scale in (
        ("simclr-cifar10-1000ep", 512, 1e-6, 2.0),
        ("simclr-cifar10-1000ep-r50", 1024, 1e-6, 2.0),
        ("simclr-cifar10-800ep", 512, 5e-4, 1.0),
        ("simclr-imagenette", 256, 5e-4, 1.0),
    ):
        config = catalogue.recipe(name)
        assert config.batch_size == batch
        assert config.optimizer.weight_decay == decay
        assert config.method == SimCLRConfig(temperature=0.5, loss_scale=scale)
    config = catalogue.recipe("supcon-cifar10-1000ep")
    assert config.method.loss_scale == pytest.approx(0.1 / 0.07)
    assert (config.optimizer.lr, config.optimizer.lr_scaling) == (0.5, "none")
    assert not config.zero_init_residual
    # 0.075 * sqrt(batch), 0.1 * sqrt(batch) in SimCLRv2; 0.3 and, on CIFAR-10, 1 per 256 images.
    for name, scaling, rate in (
        ("simclr-imagenet-100ep", "sqrt", 1.697),
        ("simclr-imagenet-100ep-bs4096", "linear", 4.8),
        ("simclr-v2-imagenet-800ep", "sqrt", 6.4),
        ("simclr-cifar10-1000ep", "linear", 2.0),
    ):
        config = catalogue.recipe(name)
        assert config.optimizer.lr_scaling == scaling
        assert peak_lr(config.optimizer, config.batch_size) == pytest.approx(rate, abs=1e-3)
