"""The command line. Wrong input gives one line on stderr and exit code 2."""

import importlib
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from fastsimsiam.errors import UserError
from fastsimsiam.system.out_of_memory import exhausted_memory
from fastsimsiam.system.resources import limit_threads
from fastsimsiam.system.text import printable_lines
from fastsimsiam.version import __version__

COMMANDS = (
    "pretrain",
    "knn",
    "linear",
    "finetune",
    "distill",
    "uncertainty",
    "inspect",
    "embed",
    "export",
    "report",
    "views",
    "pack",
    "index",
    "doctor",
    "recipes",
)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_HELP = """usage: fastsimsiam COMMAND ...

commands:
  pretrain RECIPE       pretrain a backbone on a folder of images
  knn CHECKPOINT        score a checkpoint by its k nearest neighbors
  linear CHECKPOINT     train a linear classifier on frozen features: top-1 and top-5
  finetune CHECKPOINT   train it further, with a classifier, on a share of the labels
  distill TEACHER       train a student on the answers of a fine-tuned network
  uncertainty CHECKPOINT
                        tell whether it knows which images it gets wrong
  inspect CHECKPOINT    tell a healthy representation from a collapsed one
  embed CHECKPOINT      write the features of a data set to a file
  export CHECKPOINT DST write the backbone for torchvision, timm or onnxruntime
  report RUN ...        write an HTML report on runs: curves, neighbors, a map, commands
  views PATH            draw the views of a recipe
  pack SRC DST          pack images into one file (.beton)
  index PATH            read the headers of a data set once, and tell what is in it
  doctor                measure this machine: its bottleneck, and the time a recipe takes
  recipes               list the recipes

fastsimsiam COMMAND --help lists all options; fastsimsiam --version prints the version."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: arguments without the program's name; None: those of the process.

    Returns:
        The exit code: 0, 2 for wrong input, 128 and the number of the signal that ended the command.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    _fill_closed_descriptors()
    # Those of PIL are about metadata and large images: what matters is an error in one line.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal's encoding lacks is printed with escapes, as on stderr.
        sys.stdout.reconfigure(errors="backslashreplace")
    if "torch" not in sys.modules:
        limit_threads()
    stopped = _Stopped()
    try:
        with _signals_as_exceptions(stopped):
            return _dispatch(argv)
    except UserError as error:
        _print_error(str(error))
        return 2
    except BrokenPipeError:  # the reader, a pager for example, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _print_error(f"{where}{error.strerror or error}")
        return 2
    except (MemoryError, RuntimeError) as error:
        memory = exhausted_memory(error)
        if memory is None:
            raise
        _print_error(f"{memory} is too small for this")
        return 2
    except (_SignalReceived, KeyboardInterrupt):
        name = signal.Signals(stopped.number).name
        print(f"fastsimsiam: interrupted by {name}", file=sys.stderr)
        return 128 + stopped.number


class _SignalReceived(BaseException):
    """Ends the command; after a KeyboardInterrupt Python's own exit code would be SIGINT's."""


class _Stopped:
    """A handler that ends the command as Ctrl-C does, so that nothing half-written is left.

    Attributes:
        number: number of the signal that was received.
    """

    number: int = signal.SIGINT

    def __init__(self) -> None:
        self._process = os.getpid()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Raises an exception; a second signal ends the process at once."""
        del frame
        if os.getpid() != self._process and number == signal.SIGINT:
            return  # Ctrl-C reaches workers too; the command ends them
        self.number = number
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() != self._process:  # a worker has nothing to clean up
            os.kill(os.getpid(), number)
        raise _SignalReceived


@contextmanager
def _signals_as_exceptions(stopped: _Stopped) -> Iterator[None]:
    """Lets `stopped` handle the signals that end a command; restores the handlers at the end."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # nohup: the user wants the command to go on
            signal.signal(number, stopped)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


def _print_error(message: str) -> None:
    """Prints a message on one line; what cannot be printed is escaped."""
    lines = printable_lines(message).split("\n")
    print(f"fastsimsiam: error: {' '.join(line.strip() for line in lines)}", file=sys.stderr)


def _fill_closed_descriptors() -> None:
    """Opens standard streams that are closed: the run's files would get their numbers, and texts."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_HELP)
        return 0
    if argv[0] == "--version":
        print(f"fastsimsiam {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        raise UserError(f"there is no command {argv[0]!r}: choose one of {', '.join(COMMANDS)}")
    # Imported on use: --help and a mistyped command answer without loading the others.
    command = importlib.import_module(f"fastsimsiam.commands.{argv[0]}")
    code: int = command.run(argv[1:])
    return code
