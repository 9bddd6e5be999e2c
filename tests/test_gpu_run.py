"""`benchmarks.gpu` keeps what it has measured, whatever happens to a phase."""

import json
import sys
import tarfile
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.files import FINISHED, RUNNING, result_path, results
from benchmarks.gpu.hardware import convolutions, measure_convolutions
from benchmarks.gpu.phases import PHASES
from benchmarks.gpu.trainer import kind_of
from benchmarks.gpu.worker import Bench, Phase, run_phase, work
from benchmarks.roofline import step_cost
from fastsimsiam.methods.registry import build_method
from fastsimsiam.recipes import catalogue

_WORKER = """
import json, os, sys, time
from pathlib import Path
out, fate = Path(sys.argv[1]), sys.argv[2]
def running(name, seconds):
    (out / "running.json").write_text(json.dumps({"phase": name, "until": time.time() + seconds}))
if not (out / "first.json").exists():
    running("first", 60)
    (out / "first.json").write_text("{}")
    running("second", 0.1)
    if fate == "hangs":
        time.sleep(1000)
    os._exit(11)
assert json.loads((out / "second.json").read_text())["failed"]
running("third", 60)
(out / "third.json").write_text("{}")
(out / "running.json").unlink()
(out / "finished").touch()
"""


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A bench with a minute left."""
    args = Namespace(out=tmp_path, end=time.time() + 60, commit="abc", only=None)
    return Bench(args=args, device=torch.device("cpu"), batch_size=2)


@pytest.mark.parametrize("fate", ["hangs", "crashes"])
def test_other_phases_go_on_after_one_that_takes_its_process_along(
    fate: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "GRACE", 0.2)
    out, archive = tmp_path / "out", tmp_path / "out.tar.gz"
    out.mkdir()
    words = [sys.executable, "-c", _WORKER, str(out), fate]
    command.watch(words, out, archive, time.time() + 60)
    command.pack(out, archive)
    why = {"hangs": "hung", "crashes": "code 11"}[fate]
    assert why in results(out)["second"]["failed"]
    assert (out / FINISHED).exists()
    with tarfile.open(archive) as tar:
        names = {Path(name).name for name in tar.getnames()}
    assert {"first.json", "second.json", "third.json"} <= names


def test_a_run_that_is_killed_leaves_the_files_of_its_phases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "GRACE", 0.2)
    words = [sys.executable, "-c", _WORKER, str(tmp_path), "hangs"]
    command.watch(words, tmp_path, tmp_path / "a.tar.gz", time.time() + 2)
    assert results(tmp_path)["first"] == {}


def test_a_phase_ends_at_its_limit_and_says_so(bench: Bench) -> None:
    def slow(_: Bench) -> dict[str, object]:
        time.sleep(30)
        return {}

    started = time.perf_counter()
    assert not run_phase(Phase(name="slow", seconds=0.3, run=slow), bench)
    assert time.perf_counter() - started < 5
    assert "more than 0 s" in results(bench.out)["slow"]["failed"]


def test_finished_phases_are_not_measured_again(bench: Bench) -> None:
    ran: list[str] = []

    def phase(name: str, needs: str | None = None) -> Phase:
        def run(bench: Bench) -> dict[str, object]:
            ran.append(name)
            if name == "fails":
                raise ValueError("no reason")
            return {"value": 1}

        return Phase(name=name, seconds=5, run=run, least=0.0, needs=needs)

    phases = [phase("build"), phase("fails"), phase("uses", needs="build"), phase("last")]
    result_path(bench.out, "last").write_text("{}")
    work(phases, bench)
    # The trainer is not there (this `build` makes none), so it is built again.
    assert ran == ["build", "fails", "build", "uses"]
    found = results(bench.out)
    assert "ValueError: no reason" in found["fails"]["failed"]
    assert found["uses"]["machine"]["commit"] == "abc"
    assert not (bench.out / RUNNING).exists()


def test_no_time_left_starts_nothing(bench: Bench) -> None:
    bench.args.end = time.time()
    work([Phase(name="any", seconds=5, run=lambda _: {})], bench)
    assert results(bench.out) == {}


def test_convolutions_are_those_of_the_network() -> None:
    found = convolutions("resnet50", 224)
    assert sum(found.values()) == 53
    assert sum(count for shape, count in found.items() if shape[1][2:] == (1, 1)) == 36
    flops = sum(
        count * 2 * torch.Size(w).numel() * (size[1] // stride[0]) * (size[2] // stride[1])
        for (size, w, stride, _, _), count in found.items()
    )
    cost = step_cost(
        lambda: build_method(catalogue.recipe("imagenet-100ep")), 224, 2, torch.bfloat16
    )
    assert flops == pytest.approx(cost.parts["forward"].flops, rel=0.02)


def test_convolutions_are_timed() -> None:
    found = convolutions("resnet18", 32)
    rows = measure_convolutions(found, 2, torch.float32, torch.device("cpu"))
    assert len(rows) == len(found)
    assert [row["ms"]["dgrad"] == 0 for row in rows].count(True) == 1
    assert all(row["ms"]["forward"] > 0 and row["ms"]["wgrad"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc", "forward"),
        ("sm80_xmma_wgrad_implicit_gemm_indexed_bf16bf16_bf16f32_f32_nhwckrsc_nhwc", "wgrad"),
        ("sm90_xmma_dgrad_implicit_gemm_bf16", "dgrad"),
        ("cudnn_generated_fort_native_conv_bwd_data", "dgrad"),
        ("triton_red_fused__native_batch_norm_legit_functional_3", "compiled reductions"),
        ("triton_poi_fused_relu_5", "compiled elementwise"),
        ("nvjet_tst_128x256_64x4", "products"),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("moments_kernel", "fused sums"),
        ("join_kernel", "1x1 convolutions with BatchNorm"),
        ("blurred_kernel", "color kernels"),
    ],
)
def test_kernels_have_kinds(kernel: str, kind: str) -> None:
    assert kind in kind_of(kernel)


def test_phases_have_names_of_their_own() -> None:
    names = [phase.name for phase in PHASES]
    assert len(set(names)) == len(names)
    assert {phase.needs for phase in PHASES} == {None, "build"}
    assert json.dumps(names)
