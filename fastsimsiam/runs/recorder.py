"""What happens in a run, passed on to its loggers."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from fastsimsiam.config.run import Config
from fastsimsiam.errors import UserError
from fastsimsiam.runs.loggers import Logger, TerminalLogger, keep_metrics, open_loggers


class Recorder:
    """Passes metrics and messages on to all loggers. On ranks other than the main one it is silent.

    Attributes:
        history: all metric lines of the run; where it is active, those before a resume included.
    """

    def __init__(
        self, config: Config, *, active: bool = True, resumed_step: int | None = None
    ) -> None:
        """Opens the loggers.

        Args:
            config: the run's configuration.
            active: False writes and prints nothing.
            resumed_step: metrics of later steps are dropped, since the run repeats them; None: the run
                starts.

        Raises:
            UserError: nothing can be written to the run's folder.
        """
        self.history: list[dict[str, Any]] = []
        self._terminal: TerminalLogger | None = None
        self._loggers: list[Logger] = []
        if not active:
            return
        self._terminal = TerminalLogger()
        self._loggers = [self._terminal]
        try:
            config.out.mkdir(parents=True, exist_ok=True)
            if resumed_step is not None:
                self.history = keep_metrics(config.out, resumed_step)
            for logger in open_loggers(config, resumed_step):
                self._loggers.append(logger)
        except OSError as error:
            self.close()  # what is open already
            raise UserError(
                f"cannot write to --out {config.out} ({error.strerror}): pass another folder"
            ) from error

    def note(self, text: str) -> None:
        """Prints a line that no file keeps."""
        if self._terminal:
            self._terminal.say(text)

    def say(self, text: str) -> None:
        """Tells all loggers a line."""
        for logger in self._loggers:
            logger.say(text)

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Adds metrics to the history and to all loggers."""
        self.history.append({"step": step, **values})
        for logger in self._loggers:
            logger.log(step, values)

    def start_bar(self, total: int, done: int) -> None:
        """Shows a progress bar of `total` steps, on a terminal."""
        if self._terminal:
            self._terminal.start_bar(total, done)

    def status(self, text: str, step: int | None = None, total: int | None = None) -> None:
        """Shows where the run is: on the bar, or, with `step` and `total`, as a line of the log."""
        bar = self._terminal is not None and self._terminal.update_bar(text, step)
        if step is None:
            return
        for logger in self._loggers:
            if not (bar and logger is self._terminal):
                logger.say(f"step {step}/{total}  {text}")

    def close(self) -> None:
        """Closes all loggers, also if one of them fails."""
        with ExitStack() as stack:
            for logger in self._loggers:
                stack.callback(logger.close)
