"""Where a run's figures go: the terminal, `metrics.jsonl`, TensorBoard, `log.txt`."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from fastsimsiam.errors import UserError


class Recorder:
    """Writes what happens in a run. On ranks other than the main one it is silent.

    Attributes:
        history: all metric lines of the run; where it is active, those of before a resume included.
    """

    def __init__(self, out: Path, *, active: bool = True, resumed_step: int | None = None) -> None:
        """Opens the files.

        Args:
            out: the run's folder.
            active: False writes and prints nothing.
            resumed_step: lines of later steps are dropped: the run is about to repeat them.
        """
        self.history: list[dict[str, Any]] = []
        self._active = active
        self._console = Console()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if not active:
            return
        self._metrics_path = out / "metrics.jsonl"
        try:
            out.mkdir(parents=True, exist_ok=True)
            if resumed_step is not None:
                self._keep_until(resumed_step)
            mode = "w" if resumed_step is None else "a"
            self._log = open(out / "log.txt", mode)  # noqa: SIM115 (closed in `close`)
            self._metrics = open(self._metrics_path, mode)  # noqa: SIM115
        except OSError as error:
            raise UserError(f"cannot write to --out {out} ({error.strerror})") from error
        # Imported here: it takes seconds, and the commands that do not train need none of it.
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(
            str(out / "tensorboard"), purge_step=None if resumed_step is None else resumed_step + 1
        )

    def _keep_until(self, step: int) -> None:
        """Drops metric lines after `step`, and a last line that a crash cut short."""
        if not self._metrics_path.exists():
            return
        for line in self._metrics_path.read_text().splitlines():
            try:
                values = json.loads(line)
            except json.JSONDecodeError:
                continue
            if values["step"] <= step:
                self.history.append(values)
        temporary = self._metrics_path.with_suffix(".partial")
        temporary.write_text("".join(json.dumps(values) + "\n" for values in self.history))
        os.replace(temporary, self._metrics_path)

    def note(self, text: str) -> None:
        """Prints a line."""
        if self._active:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Prints a line, and keeps it in log.txt."""
        if not self._active:
            return
        self.note(text)
        self._log.write(text + "\n")
        self._log.flush()

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a line of metrics."""
        line = {"step": step, **values}
        self.history.append(line)
        if not self._active:
            return
        self._metrics.write(json.dumps(line) + "\n")
        self._metrics.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def start_bar(self, total: int, done: int) -> None:
        """Shows a progress bar where somebody watches; elsewhere `step` prints lines."""
        if self._active and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[status]}"),
                console=self._console,
            )
            self._task = self._bar.add_task("pretrain", total=total, completed=done, status="")
            self._bar.start()

    def step(self, step: int, total: int, status: str) -> None:
        """Moves the bar, or prints a plain line."""
        if self._bar:
            self._bar.update(self._task, completed=step, status=status)
        else:
            self.say(f"step {step}/{total}  {status}")

    def status(self, text: str) -> None:
        """Shows what goes on between steps, on the bar alone."""
        if self._bar:
            self._bar.update(self._task, status=text)

    def close(self) -> None:
        """Stops the bar and closes the files."""
        if not self._active:
            return
        if self._bar:
            self._bar.stop()
            self._bar = None
        self._board.close()
        self._metrics.close()
        self._log.close()
