"""What happens in a run, passed on to its loggers."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from fastsimsiam.config.run import Config
from fastsimsiam.errors import UserError
from fastsimsiam.runs.loggers import Logger, TerminalLogger, keep_metrics, open_loggers

_FAILURES = (OSError, RuntimeError, ValueError)
"""What a logger may raise without ending the run."""
_Logger = TypeVar("_Logger", bound=Logger)


class Recorder:
    """Passes metrics and messages on to all loggers. On ranks other than the main one it is silent.

    A logger that fails is reported once and left out: none of them ends a training.

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
        self._failing: set[Logger] = set()
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
        for logger in tuple(self._loggers):
            self._tell(logger, lambda logger: logger.open())

    @property
    def failing(self) -> list[str]:
        """Names of the loggers whose latest lines could not be written, of those that try again."""
        return sorted(logger.name for logger in self._failing)

    def note(self, text: str) -> None:
        """Prints a line that no file keeps."""
        if self._terminal:
            self._tell(self._terminal, lambda logger: logger.say(text))

    def say(self, text: str) -> None:
        """Tells all loggers a line."""
        for logger in tuple(self._loggers):
            self._tell(logger, lambda logger: logger.say(text))

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Adds metrics to the history and to all loggers."""
        self.history.append({"step": step, **values})
        for logger in tuple(self._loggers):
            self._tell(logger, lambda logger: logger.log(step, values))

    def start_bar(self, total: int, done: int) -> None:
        """Shows a progress bar of `total` steps, on a terminal."""
        if self._terminal:
            self._tell(self._terminal, lambda logger: logger.start_bar(total, done))

    def status(self, text: str, step: int | None = None, total: int | None = None) -> None:
        """Shows where the run is: on the bar, or, with `step` and `total`, as a line of the log."""
        terminal = self._terminal
        bar = terminal is not None and terminal.has_bar
        if terminal is not None and bar:
            self._tell(terminal, lambda logger: logger.update_bar(text, step))
        if step is None:
            return
        line = f"step {step}/{total}  {text}"
        for logger in tuple(self._loggers):
            if not (bar and logger is terminal):
                self._tell(logger, lambda logger: logger.say(line))

    def close(self) -> None:
        """Closes all loggers, also if one of them fails."""
        while self._loggers:  # the terminal is the last
            self._tell(self._loggers.pop(), lambda logger: logger.close(), last=True)

    def _tell(
        self, logger: _Logger, call: Callable[[_Logger], None], *, last: bool = False
    ) -> None:
        """Calls a logger; its failure is told to the others, once."""
        report = ""
        try:
            call(logger)
        except _FAILURES as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            if last:
                then = "its last lines are lost"
            elif logger.tries_again:
                then = "what is missing is kept, and written when it can be"
            else:
                then = "the run goes on without it"
                self._leave_out(logger)
            if last or logger not in self._failing:
                report = f"WARNING: {logger.name} cannot be written ({reason}): {then}"
        # Before the report, which reaches a logger that tries again, too.
        if logger.behind:
            self._failing.add(logger)
        else:
            self._failing.discard(logger)
        if report:
            self.say(report)

    def _leave_out(self, logger: Logger) -> None:
        self._loggers = [other for other in self._loggers if other is not logger]
        if logger is self._terminal:
            self._terminal = None
        with suppress(*_FAILURES):
            logger.close()
