"""Words of a command line into dataclasses, by tyro; and what commands write alike."""

import contextlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import tyro

from fastsimsiam.errors import UserError

_Args = TypeVar("_Args")


def parse(
    kind: Callable[..., _Args], argv: list[str], prog: str, *, default: Any = None, about: str
) -> _Args:
    """tyro, with its boxes of error text folded into one line."""
    printed = io.StringIO()
    options: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(printed):
            parsed: _Args = tyro.cli(kind, args=argv, prog=prog, description=about, **options)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(f"{_one_line(printed.getvalue())}; see {prog} --help") from None
    asked: Path | None = getattr(parsed, "json", None)
    if asked and not asked.parent.is_dir():  # before hours of work, not after
        raise UserError(f"--json {asked}: there is no folder {asked.parent}")
    return parsed


def _one_line(box: str) -> str:
    """What a box of tyro's says: its first part, and the names of options it suggests."""
    lines = [line.strip("│ ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    first, _, rest = "\n".join(lines).partition("\n───")
    text = " ".join(first.split())
    near = list(dict.fromkeys(re.findall(r"^--[\w.-]+", rest, flags=re.MULTILINE)))
    return f"{text}; did you mean {' or '.join(near[:3])}?" if near else text


def write_json(path: Path, content: object) -> None:
    """Writes what `--json` asks for."""
    try:
        path.write_text(json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write --json {path} ({error.strerror})") from error
