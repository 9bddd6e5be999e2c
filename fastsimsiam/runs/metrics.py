"""metrics.jsonl and summary.json as they are read: only what a run can have written."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastsimsiam.errors import UserError
from fastsimsiam.system.files import read_text

METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"
_MOST_STEPS = 2**53


def is_number(value: object) -> bool:
    """Whether a value from a file is a finite number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def read_metrics(text: str) -> tuple[list[tuple[str, dict[str, Any]]], list[int]]:
    """The lines of metrics.jsonl.

    Args:
        text: content of the file.

    Returns:
        Each line that a run can have written, as its text and its values: a step and finite numbers.
        And the numbers of the other lines, from 1: damaged ones, or one that is being written.
    """
    lines, others = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        values = _parse(line)
        step = values.get("step") if isinstance(values, dict) else None
        if _is_step(step):
            numbers = {name: value for name, value in values.items() if is_number(value)}
            if step == 0 or numbers.get("epoch", 1) <= 0:
                numbers.pop("epoch", None)
            lines.append((line, numbers))
        else:
            others.append(number)
    return lines, others


def read_summary(out: Path) -> dict[str, Any]:
    """The content of a run's summary.json, without values of wrong types; empty if there is none.

    Raises:
        UserError: the file is not a run's, or cannot be read.
    """
    path = out / SUMMARY_FILE
    text = read_text(path)
    if text is None:
        return {}
    stored = _parse(text)
    if not isinstance(stored, dict):
        raise UserError(f"{path} is damaged or was not written by pretrain: remove it")
    return {
        key: value for key, value in stored.items() if key not in _EXPECTED or _EXPECTED[key](value)
    }


def _is_step(value: object) -> bool:
    return type(value) is int and 0 <= value < _MOST_STEPS


def _is_duration(value: Any) -> bool:
    return is_number(value) and value >= 0


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


def _is_numbers(value: object) -> bool:
    return isinstance(value, dict) and all(map(is_number, value.values()))


def _is_texts(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


_EXPECTED: Mapping[str, Callable[[object], bool]] = {
    "config": _is_dict,
    "steps": _is_step,
    "signal": _is_step,
    "seconds": _is_duration,
    "first": _is_numbers,
    "last": _is_numbers,
    "bad_images": _is_texts,
    "warned_images": _is_texts,
    "versions": _is_texts,
    "data": _is_text,
    "commit": _is_text,
}
"""Keys of summary.json with what their values are."""


def _parse(text: str) -> Any:
    """The JSON value of a text; None if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
