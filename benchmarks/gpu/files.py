"""The files through which the two processes of `benchmarks.gpu` know of each other."""

import json
import os
from pathlib import Path
from typing import Any

RUNNING = "running.json"
"""Names the phase that runs and the second at which it has to be over."""
FINISHED = "finished"
"""Empty; says that no phase is left."""
LOST = 70
"""Exit code of a process that cannot go on, in whose place another one shall."""


def result_path(out: Path, name: str) -> Path:
    """The file of a phase."""
    return out / f"{name}.json"


def results(out: Path) -> dict[str, dict[str, Any]]:
    """Phase -> what its file holds."""
    paths = [path for path in sorted(out.glob("*.json")) if path.name != RUNNING]
    return {path.stem: json.loads(path.read_text()) for path in paths}


def write(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1, default=str) + "\n")
    os.replace(partial, path)
