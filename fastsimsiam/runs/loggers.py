"""Where a run's metrics and messages go. A new logger is a class here and a line in `open_loggers`."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from fastsimsiam.config.run import Config
from fastsimsiam.config.stored import to_dict
from fastsimsiam.runs.metrics import METRICS_FILE, read_metrics
from fastsimsiam.system.files import read_text, written_whole


class Logger:
    """The contract of a logger; it does nothing by itself. A subclass overrides what it needs.

    `open_loggers` constructs loggers from the run's config before the first step, on the main rank
    alone. They are called in the training loop: they must be quick, and an exception ends the run.
    After a resume, steps that were logged already come again; a logger that keeps them drops the old
    ones, as `resumed_step` tells it. A step may come twice, with metrics and with scores.

        class PrintLogger(Logger):
            def log(self, step, values):
                print(step, values)
    """

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Receives metrics.

        Args:
            step: optimizer steps done.
            values: metrics by name, of the steps since the last call or of an evaluation.
        """

    def say(self, text: str) -> None:
        """Receives a message for the user, one line."""

    def close(self) -> None:
        """Writes what is buffered and lets go of files."""


class TerminalLogger(Logger):
    """Messages and a progress bar on the terminal; plain lines where nobody watches."""

    def __init__(self) -> None:
        """Finds out whether the output is a terminal."""
        self._console = Console()
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def say(self, text: str) -> None:
        """Prints the line, above the bar."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def start_bar(self, total: int, done: int) -> None:
        """Shows a bar of optimizer steps, on a terminal."""
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[status]}"),
                console=self._console,
            )
            self._task = self._bar.add_task("pretrain", total=total, completed=done, status="")
            self._bar.start()

    def update_bar(self, status: str, step: int | None = None) -> bool:
        """Changes the bar's text, and moves it to `step`; returns whether there is a bar."""
        if self._bar:
            self._bar.update(self._task, completed=step, status=status)
        return self._bar is not None

    def close(self) -> None:
        """Stops the bar."""
        if self._bar:
            self._bar.stop()
            self._bar = None


class TextLogger(Logger):
    """Messages in `log.txt`."""

    def __init__(self, out: Path, resumed: bool) -> None:
        """Opens the file in the run's folder; a resumed run appends."""
        self._file = open(out / "log.txt", "a" if resumed else "w")  # noqa: SIM115 (see `close`)

    def say(self, text: str) -> None:
        """Adds a line."""
        self._file.write(text + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class JsonLinesLogger(Logger):
    """Metrics in `metrics.jsonl`: one JSON object per line, with its `step`."""

    def __init__(self, out: Path, resumed: bool) -> None:
        """Opens the file in the run's folder; a resumed run appends."""
        self._file = open(out / METRICS_FILE, "a" if resumed else "w")  # noqa: SIM115 (see `close`)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a line."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoardLogger(Logger):
    """Metrics as scalars of TensorBoard, and the config as its text, in `tensorboard/`."""

    def __init__(self, config: Config, resumed_step: int | None) -> None:
        """Opens the event file; scalars behind a resumed step are hidden."""
        # Imported here: it takes seconds, and only training needs it.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(
            str(config.out / "tensorboard"),
            # A run that starts again hides what it has written before it was killed.
            purge_step=0 if resumed_step is None else resumed_step + 1,
        )
        text = json.dumps(to_dict(config), indent=1).replace("\n", "\n    ")
        self._writer.add_text("config", f"    {text}", resumed_step or 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a scalar for each metric."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes the rest."""
        self._writer.close()


def open_loggers(config: Config, resumed_step: int | None) -> Iterator[Logger]:
    """Opens all loggers of a run but the terminal, on the main rank.

    Args:
        config: the run's configuration; files go to `config.out`.
        resumed_step: step from which the run continues; None: it starts.
    """
    resumed = resumed_step is not None
    yield TextLogger(config.out, resumed)
    yield JsonLinesLogger(config.out, resumed)
    yield TensorBoardLogger(config, resumed_step)


def keep_metrics(out: Path, last_step: int) -> list[dict[str, Any]]:
    """Cuts `metrics.jsonl` after a step, since a resumed run repeats the rest; returns its lines.

    Lines that are damaged or that a crash has cut short are removed, too.
    """
    path = out / METRICS_FILE
    text = read_text(path)
    if text is None:
        return []
    lines = [line for line in read_metrics(text)[0] if line[1]["step"] <= last_step]
    with written_whole(path, "metrics") as file:
        file.write_text("".join(line + "\n" for line, _ in lines))
    return [values for _, values in lines]
