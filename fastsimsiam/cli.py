"""The command line. Wrong input gives one line on stderr and exit code 2."""

import importlib
import os
import sys
from collections.abc import Sequence

from fastsimsiam.errors import UserError
from fastsimsiam.system.resources import limit_threads
from fastsimsiam.version import __version__

COMMANDS = (
    "pretrain",
    "knn",
    "linear",
    "inspect",
    "embed",
    "export",
    "report",
    "views",
    "pack",
    "doctor",
    "recipes",
)
_HELP = """usage: fastsimsiam COMMAND ...

commands:
  pretrain RECIPE       pretrain a backbone on a folder of images
  knn CHECKPOINT        score a checkpoint by its k nearest neighbors
  linear CHECKPOINT     train a linear classifier on frozen features: top-1 and top-5
  inspect CHECKPOINT    tell a healthy representation from a collapsed one
  embed CHECKPOINT      write the features of a data set to a file
  export CHECKPOINT DST write the backbone for torchvision, timm or onnxruntime
  report RUN ...        write an HTML report on runs: curves, neighbors, a map, commands
  views PATH            draw the views of a recipe
  pack SRC DST          pack class folders into one file for FFCV
  doctor                measure this machine: its bottleneck, and the time a recipe takes
  recipes               list the recipes

fastsimsiam COMMAND --help lists all options; fastsimsiam --version prints the version."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: arguments without the program's name; None: those of the process.

    Returns:
        The exit code: 0, 2 for wrong input, 130 after Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if "torch" not in sys.modules:
        limit_threads()
    try:
        return _dispatch(argv)
    except UserError as error:
        print(f"fastsimsiam: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, a pager for example, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"fastsimsiam: error: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fastsimsiam: interrupted", file=sys.stderr)
        return 130


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
