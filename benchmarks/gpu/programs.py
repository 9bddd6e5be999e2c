"""Programs beside the process that measures: the GPU's tests, and a whole run on Imagenette."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

import benchmarks
from benchmarks.gpu.worker import Bench, Result

_TESTS = "tests/test_gpu.py tests/test_gpu_views.py"
_PYTEST = "-m pytest -q -rA --tb=short -W default -p no:cacheprovider"


def start_tests(bench: Bench) -> Result:
    """Starts the tests of the GPU, which run while the trainer compiles."""
    log = open(bench.out / "tests.log", "w")  # noqa: SIM115 - the process writes into it
    words = [sys.executable, *_PYTEST.split(), *_TESTS.split()]
    root = Path(benchmarks.__file__).parents[1]
    bench.background = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, cwd=root)
    bench.notes["tests_started"] = time.perf_counter()
    return {"command": " ".join(words[1:])}


def end_tests(bench: Bench) -> Result:
    """Waits for the tests, so that nothing runs beside the next measurement."""
    if bench.background is None:
        start_tests(bench)
    tests = bench.background
    try:
        tests.wait()
    finally:
        tests.kill()
        bench.background = None
    lines = (bench.out / "tests.log").read_text().splitlines()
    outcomes = [line for line in lines if line.startswith(("PASSED", "FAILED", "ERROR", "SKIPPED"))]
    return {
        "seconds": time.perf_counter() - bench.notes["tests_started"],
        "code": tests.returncode,
        "last_line": lines[-1] if lines else "",
        "outcomes": outcomes,
    }


def imagenette(bench: Bench) -> Result:
    """A whole run with kNN on Imagenette, ResNet-18, 128 pixels, by the command that users run."""
    args = bench.args
    if args.imagenette is None:
        raise ValueError("pass --imagenette")
    out = bench.out / "imagenette"
    words = [sys.executable, "-m", "fastsimsiam", "pretrain", "imagenette"]
    words += ["--data", str(args.imagenette), "--out", str(out), "--epochs", str(args.epochs)]
    words += ["--knn.every-epochs", str(max(1, args.epochs // 4)), "--log-every", "100"]
    words += ["--checkpoint.every-epochs", str(args.epochs), "--device", args.device]
    if args.device == "cpu":
        words += ["--image-size", "32", "--max-steps", "6"]
    started = time.perf_counter()
    with open(bench.out / "imagenette.log", "w") as log:
        run = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)
        try:
            run.wait()
        finally:
            if run.poll() is None:
                run.send_signal(signal.SIGKILL)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    (bench.out / "imagenette-metrics.jsonl").write_text((out / "metrics.jsonl").read_text())
    rates = [line["images_per_second"] for line in lines if "images_per_second" in line]
    return {
        "command": " ".join(words[1:]),
        "code": run.returncode,
        "seconds": time.perf_counter() - started,
        "images_per_second": sorted(rates)[len(rates) // 2] if rates else None,
        "scores": [line for line in lines if any(key.startswith("knn") for key in line)],
        "last": lines[-1] if lines else None,
    }


def caches(bench: Bench) -> Result:
    """Saves what was compiled, for a later run on such a machine."""
    saved = torch.compiler.save_cache_artifacts()
    if saved is None:
        return {"bytes": 0}
    path = bench.out / "compile-cache.bin"
    path.write_bytes(saved[0])
    return {"bytes": len(saved[0]), "kinds": str(saved[1])[:2000]}


def load_caches(bench: Bench) -> Result:
    """Loads what an earlier run saved."""
    path = bench.out / "compile-cache.bin"
    if os.path.exists(path):
        torch.compiler.load_cache_artifacts(path.read_bytes())
        return {"bytes": path.stat().st_size}
    return {"bytes": 0}
