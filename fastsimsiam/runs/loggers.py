"""Where a run's metrics and messages go. A new logger is a class here and a line in `open_loggers`."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from fastsimsiam.config.run import Config
from fastsimsiam.config.stored import to_dict
from fastsimsiam.runs.event_file import EventFile
from fastsimsiam.runs.line_file import LineFile
from fastsimsiam.runs.metrics import METRICS_FILE, read_metrics
from fastsimsiam.system.files import read_text, written_whole
from fastsimsiam.system.json_text import to_json
from fastsimsiam.system.text import printable_lines


class Logger:
    """The contract of a logger; it does nothing by itself. A subclass overrides what it needs.

    `open_loggers` constructs loggers from the run's config before the first step, on the main rank
    alone. They are called in the training loop, so they must be quick. One that raises OSError,
    RuntimeError or ValueError is reported once and left out; training goes on.
    After a resume, steps that were logged already come again; a logger that keeps them drops the old
    ones, as `resumed_step` tells it. A step may come twice, with metrics and with scores.

        class PrintLogger(Logger):
            def log(self, step, values):
                print(step, values)

    Attributes:
        name: what a warning calls it.
        tries_again: it is not left out after a failure, since it makes up for it by itself.
    """

    name: ClassVar[str] = "a logger"
    tries_again: ClassVar[bool] = False

    @property
    def behind(self) -> bool:
        """Whether some of what it was told is not written yet."""
        return False

    def open(self) -> None:
        """Opens what may be missing or fail without harm to the run."""

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


class _Stream:
    """Standard output for rich; where it breaks (a closed pipe or terminal), the rest is dropped."""

    def __init__(self) -> None:
        self._file: TextIO | None = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
        self.error: OSError | ValueError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def isatty(self) -> bool:
        return self._file is not None and not self.error and self._file.isatty()

    def write(self, text: str) -> int:
        if self._file is not None and not self.error:
            encoding = self._file.encoding or "utf-8"
            try:
                self._file.write(text.encode(encoding, "backslashreplace").decode(encoding))
            except (OSError, ValueError) as error:
                self._break(error)
        return len(text)

    def flush(self) -> None:
        if self._file is not None and not self.error:
            try:
                self._file.flush()
            except (OSError, ValueError) as error:
                self._break(error)

    def _break(self, error: OSError | ValueError) -> None:
        self.error = error
        # What is buffered would be written again when the process ends, and change its exit code.
        with suppress(OSError, ValueError):
            assert self._file is not None
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._file.fileno())
            os.close(null)


class TerminalLogger(Logger):
    """Messages and a progress bar on the terminal; plain lines where nobody watches."""

    name = "the terminal"

    def __init__(self) -> None:
        """Finds out whether the output is a terminal."""
        self._stream = _Stream()
        # rich asks for no more of a file than the stream has.
        self._console = Console(file=cast(TextIO, self._stream))
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def say(self, text: str) -> None:
        """Prints the line, above the bar; raises OSError or ValueError where nothing can be printed."""
        self._console.print(printable_lines(text), markup=False, highlight=False, soft_wrap=True)
        self._check()

    def _check(self) -> None:
        if self._stream.error:
            raise self._stream.error

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

    @property
    def has_bar(self) -> bool:
        """Whether a bar is shown."""
        return self._bar is not None

    def update_bar(self, status: str, step: int | None = None) -> None:
        """Changes the bar's text, and moves it to `step`."""
        if self._bar:
            self._bar.update(self._task, completed=step, status=status)
            self._check()

    def close(self) -> None:
        """Stops the bar."""
        if self._bar:
            self._bar.stop()
            self._bar = None


class TextLogger(Logger):
    """Messages in `log.txt`."""

    name = "log.txt"
    tries_again = True

    def __init__(self, out: Path, resumed: bool) -> None:
        """Opens the file in the run's folder; a resumed run appends."""
        self._file = LineFile(out / "log.txt", resumed=resumed)

    def say(self, text: str) -> None:
        """Adds a line."""
        self._file.write(printable_lines(text))

    @property
    def behind(self) -> bool:
        """Whether lines wait for room on the disk."""
        return self._file.waiting > 0

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class JsonLinesLogger(Logger):
    """Metrics in `metrics.jsonl`: one JSON object per line, with its `step`."""

    name = METRICS_FILE
    tries_again = True

    def __init__(self, out: Path, resumed: bool) -> None:
        """Opens the file in the run's folder; a resumed run appends."""
        self._file = LineFile(out / METRICS_FILE, resumed=resumed)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a line."""
        self._file.write(to_json({"step": step, **values}))

    @property
    def behind(self) -> bool:
        """Whether lines wait for room on the disk."""
        return self._file.waiting > 0

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoardLogger(Logger):
    """Metrics as scalars of TensorBoard, and the config as its text, in `tensorboard/`."""

    name = "TensorBoard"

    def __init__(self, config: Config, resumed_step: int | None) -> None:
        """Prepares the event file; scalars behind a resumed step are hidden."""
        self._config, self._resumed_step = config, resumed_step
        self._file: EventFile | None = None

    def open(self) -> None:
        """Opens the event file."""
        resumed = self._resumed_step
        self._file = EventFile(self._config.out / "tensorboard")
        # A killed run may have left scalars that this one logs again.
        self._file.begin(0 if resumed is None else resumed + 1)
        text = json.dumps(to_dict(self._config), indent=1).replace("\n", "\n    ")
        self._file.text(resumed or 0, "config", f"    {text}")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a scalar for each metric."""
        if self._file:
            self._file.scalars(step, values)

    def close(self) -> None:
        """Closes the file."""
        if self._file:
            self._file.close()


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
