"""The phases in their order."""

import argparse
from collections.abc import Callable

import torch

from benchmarks.gpu import hardware, programs, trainer, variants
from benchmarks.gpu.worker import Bench, Phase, Result, work

_VARIANTS = (
    "compiled",
    "compiled-fused-bn-sums",
    "compiled-fused-stem",
    "compiled-fused-bn",
    "compiled-1x1-matmul",
    "compiled-space-to-depth",
    "compiled-aten-bn",
)


def _view(name: str, dtype: torch.dtype = torch.bfloat16) -> Callable[[Bench], Result]:
    return lambda bench: variants.one_view(bench, name, dtype)


PHASES = (
    Phase(name="software", seconds=40, run=hardware.software),
    Phase(name="limits", seconds=60, run=hardware.limits),
    Phase(name="tests-start", seconds=5, run=programs.start_tests),
    Phase(name="build", seconds=200, run=trainer.build, least=20),
    Phase(name="tests", seconds=90, run=programs.end_tests),
    Phase(name="step", seconds=40, run=trainer.step, needs="build"),
    Phase(name="profile", seconds=40, run=trainer.profile, needs="build"),
    Phase(name="loaders", seconds=90, run=trainer.loaders, least=20, needs="build"),
    Phase(name="color", seconds=60, run=trainer.color, needs="build"),
    Phase(name="eager-steps", seconds=40, run=variants.eager_steps, least=10),
    Phase(name="view-eager", seconds=30, run=_view("eager"), least=10),
    Phase(name="view-eager-fp16", seconds=30, run=_view("eager", torch.float16), least=10),
    *(Phase(name=f"view-{name}", seconds=90, run=_view(name), least=25) for name in _VARIANTS),
    Phase(name="imagenette", seconds=300, run=programs.imagenette, least=60),
)


def run(args: argparse.Namespace) -> None:
    """Runs the phases that the command line asks for, in its order."""
    known = {phase.name: phase for phase in PHASES}
    known |= {
        f"view-{name}": _variant_phase(name)
        for name in variants.VARIANTS
        if f"view-{name}" not in known
    }
    if unknown := [name for name in args.only or () if name not in known]:
        raise SystemExit(f"--only: no phase {unknown[0]}; there are {', '.join(known)}")
    chosen = [known[name] for name in args.only] if args.only else list(PHASES)
    device = torch.device("cuda", 0) if args.device == "cuda" else torch.device("cpu")
    work(chosen, Bench(args=args, device=device, batch_size=args.batch_size))


def _variant_phase(name: str) -> Phase:
    return Phase(name=f"view-{name}", seconds=90, run=_view(name), least=25)
