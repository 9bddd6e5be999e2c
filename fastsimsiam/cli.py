"""The command line. Wrong input ends in one line on stderr and exit code 2."""

import importlib
import os
import sys
from collections.abc import Sequence

from fastsimsiam.errors import UserError
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
  knn CHECKPOINT        score a checkpoint by k nearest neighbors
  linear CHECKPOINT     train a linear layer on its frozen features: top-1 and top-5
  inspect CHECKPOINT    is the representation healthy, or has it collapsed?
  embed CHECKPOINT      write the features of a data set to a file
  export CHECKPOINT DST write the backbone for torchvision, timm or onnxruntime
  report RUN ...        write one HTML file on runs: curves, neighbors, a map, how to repeat them
  views PATH            draw what a recipe's views look like
  pack SRC DST          pack class folders into one file for FFCV
  doctor                measure this machine: what holds it back, how long a recipe takes
  recipes               list the recipes

fastsimsiam COMMAND --help tells more; fastsimsiam --version prints the version."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(argv)
    except UserError as error:
        print(f"fastsimsiam: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, a pager say, has gone
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
    # Imported when needed: --help and a mistyped command should answer at once.
    command = importlib.import_module(f"fastsimsiam.commands.{argv[0]}")
    code: int = command.run(argv[1:])
    return code
