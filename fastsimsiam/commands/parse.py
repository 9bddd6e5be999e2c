"""Command-line arguments to dataclasses, by tyro; and what several commands write."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import tyro

from fastsimsiam.config import renamed
from fastsimsiam.config.methods import MethodConfig
from fastsimsiam.errors import UserError
from fastsimsiam.system.files import require_writable, written_whole
from fastsimsiam.system.json_text import to_json
from fastsimsiam.system.text import is_utf8, printable

_Args = TypeVar("_Args")
_OUTPUTS = ("out", "json", "target")
"""Arguments that name what a command writes, by libraries that take names in UTF-8 alone."""
_RENAMED_VALUES: Mapping[str, Mapping[str, str]] = {
    "--loader": renamed.LOADERS,
    "--compile": renamed.COMPILE,
}

_CHOICE = re.compile(r"invalid choice '(.*)' for argument '(--[\w.-]+)'\. Expected one of \((.*)\)")
"""What tyro says of a value that is none of an option's choices."""


def parse(
    kind: Callable[..., _Args], argv: list[str], prog: str, *, default: Any = None, about: str
) -> _Args:
    """Parses the arguments of a command.

    Args:
        kind: dataclass of the arguments.
        argv: the arguments, without the command's name.
        prog: command, for the usage line.
        default: instance of `kind` with the defaults of this call; None: those of the class.
        about: description, for --help.

    Raises:
        UserError: tyro refuses an argument; its box of text becomes one line.
    """
    printed = io.StringIO()
    options: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(printed):
            parsed: _Args = tyro.cli(kind, args=argv, prog=prog, description=about, **options)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        reason = _renamed(argv) or _one_line(printed.getvalue(), default)
        raise UserError(f"{reason}; see {prog} --help") from None
    json_file: Path | None = getattr(parsed, "json", None)
    for holder in (parsed, getattr(parsed, "config", None)):
        for path in (getattr(holder, name, None) for name in _OUTPUTS):
            if isinstance(path, Path) and not is_utf8(str(path)):
                raise UserError(f"cannot write to {printable(path)}: give a name that is UTF-8")
    if json_file:  # before hours of work, not after
        require_writable(json_file, "--json")
    return parsed


def _renamed(argv: list[str]) -> str | None:
    """Today's name of the first argument that an earlier version took; None if there is none."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        option, equals, value = argument.partition("=")
        value = value if equals else following
        if option in renamed.OPTIONS:
            return f"{option} is now {renamed.OPTIONS[option]}"
        values = _RENAMED_VALUES.get(option, {})
        if value in values:
            return f"{option} {value} is now {option} {values[value]}"
        view, _, field = option.rpartition(".")
        if view.startswith("--views.") and field in renamed.VIEW_FIELDS:
            return f"{option} is now {view}.{renamed.VIEW_FIELDS[field]}"
    return None


def _one_line(box: str, default: Any) -> str:
    """The message in a box of tyro's: its first part, and the names of options it suggests."""
    lines = [line.strip("│ ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    if "╭" not in box:  # an ASCII terminal: the title is a line, with a rule below
        lines = lines[2:]
    first, _, rest = re.sub(r"^[─-]{3,}$", "\f", "\n".join(lines), flags=re.M).partition("\f")
    text = " ".join(first.split()).removesuffix(".")
    if choice := _CHOICE.fullmatch(text):
        value, option, listed = choice.groups()
        *others, last = re.findall(r"'([^']*)'", listed)
        return f"{option} is {value}: give {', '.join(others)} or {last}"
    near = list(dict.fromkeys(re.findall(r"^--[\w.-]+", rest, flags=re.MULTILINE)))
    near = [name for name in near if f"{name}:" not in text]  # the option itself, of a wrong value
    if near:
        return f"{text}; did you mean {' or '.join(near[:3])}?"
    return f"{text}{_options_beside(text, default)}"


def _options_beside(text: str, default: Any) -> str:
    """The options of the group that an unknown one names, such as `--method.`; empty for none."""
    unknown = re.match(r"Unrecognized options: --([\w.-]+)\.", text)
    if not unknown:
        return ""
    group: Any = getattr(default, "config", default)
    for part in unknown[1].split("."):
        if isinstance(group, tuple):
            group = dict(enumerate(group)).get(int(part)) if part.isdecimal() else None
        else:
            group = getattr(group, part.replace("-", "_"), None)
    if not dataclasses.is_dataclass(group):
        return ""
    names = [field.name.replace("_", "-") for field in dataclasses.fields(group)]
    owner = group.name if isinstance(group, MethodConfig) else unknown[1]
    return f"; the options of {owner} are {', '.join(f'--{unknown[1]}.{name}' for name in names)}"


def write_json(path: Path, content: object) -> None:
    """Writes the file of `--json`.

    Raises:
        UserError: the file cannot be written.
    """
    with written_whole(path, "--json") as file:
        file.write_text(to_json(content, indent=2) + "\n")
