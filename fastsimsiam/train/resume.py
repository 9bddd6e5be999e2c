"""How a run begins: from the start, from a checkpoint, or not at all, since it is finished.

The main rank decides under the lock of the run's folder, and the other ranks follow: they must not look
for themselves at files that it is changing.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastsimsiam.config.run import Config
from fastsimsiam.errors import UserError
from fastsimsiam.methods.registry import build_method
from fastsimsiam.optim.build import STATE, optimizer_groups
from fastsimsiam.optim.schedule import schedule_steps
from fastsimsiam.runs.checkpoint import (
    Checkpoint,
    CheckpointStore,
    Say,
    load,
    newest_good,
    require_same_config,
)
from fastsimsiam.runs.fit import require_finite, require_fit, require_optimizer
from fastsimsiam.runs.folder import claimed, require_own
from fastsimsiam.runs.metrics import METRICS_FILE, read_metrics, read_summary
from fastsimsiam.system.files import read_text
from fastsimsiam.train.distributed import World

Resume = bool | Literal["auto"]
"""False: start; True: go on; auto: go on if there is a checkpoint, else start."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run that has nothing left to do.

    Attributes:
        path: its newest checkpoint.
        step: optimizer steps of the run.
        summary: content of its summary.json.
    """

    path: Path
    step: int
    summary: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Start:
    """How a run begins.

    Attributes:
        path: the checkpoint to go on from; None: the run starts.
        finished: the run has ended already.
        lines: what the log should say of it.
    """

    path: Path | None = None
    finished: Finished | None = None
    lines: tuple[str, ...] = ()


@contextmanager
def opened_run(
    config: Config, store: CheckpointStore, resume: Resume, world: World
) -> Iterator[Start]:
    """Chooses how a run begins, and keeps other runs out of its folder until the end of the block.

    Raises:
        UserError: the folder is not a run's, is in use or cannot be written; it holds a run that is
            not to be resumed; or the checkpoint to resume is missing or damaged.
    """
    with ExitStack() as stack:

        def choose() -> Start:
            require_own(config.out)
            if resume and (finished := _finished(config)):
                return Start(finished=finished)
            lines: list[str] = []
            stack.enter_context(claimed(config.out, lines.append))
            path, line = _choose(config, store, resume, lines.append)
            return Start(path=path, lines=(*lines, *([line] if line else [])))

        yield world.from_main(choose)


def _choose(
    config: Config, store: CheckpointStore, resume: Resume, say: Say
) -> tuple[Path | None, str]:
    """The checkpoint to go on from, and a line on `auto`'s choice."""
    existing = store.paths()
    if not existing:
        if resume is True:
            raise UserError(
                f"--resume: there is no checkpoint in {config.out}: drop --resume to start, or pass "
                "--resume auto"
            )
        _require_nothing_to_lose(config)
        starting = f"--resume auto: there is no checkpoint in {config.out} yet, so the run starts"
        return None, starting if resume else ""
    if not resume:
        raise UserError(
            f"--out {config.out} already holds a run ({existing[-1].name}): pass --resume to go on "
            f"with it, or another --out"
        )

    def check(path: Path, checkpoint: Checkpoint) -> None:
        require_same_config(checkpoint, config)
        require_restorable(path, checkpoint)

    path = store.resume(say, check)
    return path, f"--resume auto: the run goes on from {path.name}" if resume == "auto" else ""


def _require_nothing_to_lose(config: Config) -> None:
    """Refuses to start where a run has been, whose checkpoints somebody has taken away."""
    steps = read_summary(config.out).get("steps", 0)
    metrics, _ = read_metrics(read_text(config.out / METRICS_FILE) or "")
    epochs = max((values.get("epoch", 0) for _, values in metrics), default=0)
    # A run saves once in `every_epochs`, rounded to steps, of which an epoch has one or more.
    if steps or epochs > config.checkpoint.every_epochs + 1:
        raise UserError(
            f"--out {config.out} holds the log of a run whose checkpoints are gone: put them back "
            f"into {config.out}/checkpoints, or pass another --out"
        )


def _finished(config: Config) -> Finished | None:
    """The run, if it has reached its last step and has written its summary; reads files alone."""
    try:
        summary = read_summary(config.out)
        if "steps" not in summary or summary.get("signal"):
            return None  # a signal may have ended it in its last evaluation
        path, checkpoint = newest_good(config.out, lambda text: None, load)
        images = int(checkpoint.data.partition(" ")[0])
    except (UserError, ValueError):
        return None  # `_choose` says what is wrong, if something is
    require_same_config(checkpoint, config)
    stop = schedule_steps(config, images // config.batch_size).stop
    if not 0 < stop <= min(checkpoint.step, summary["steps"]):
        return None
    return Finished(path=path, step=checkpoint.step, summary=summary)


def require_restorable(path: Path, checkpoint: Checkpoint) -> None:
    """Refuses a checkpoint that its own network and optimizer cannot load."""
    method = build_method(checkpoint.config)
    require_fit(checkpoint.method, method.state_dict(), path)
    require_finite(checkpoint.method, (name for name, _ in method.named_parameters()), path)
    config = checkpoint.config.optimizer
    groups = [group.parameters for group in optimizer_groups(method.parameter_groups(), config)]
    require_optimizer(checkpoint.optimizer, groups, STATE[config.name], path)
