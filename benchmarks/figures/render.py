"""Writes the tables of result files into the documents, and draws their charts.

    python -m benchmarks.render            # a test runs it with --check

A document says where: `<!-- results/loader.json -->` ... `<!-- end -->`. Charts need matplotlib.
"""

import argparse
import json
import re
import sys
from pathlib import Path

from benchmarks import (
    augment,
    batch_norm,
    charts,
    decode,
    forecast,
    loader,
    small_maps,
    stem,
    step,
    train,
)

ROOT = Path(__file__).parent
DOCUMENTS = (ROOT / "README.md", ROOT.parent / "README.md")
CHARTS = {"results/loader.json": "docs/loaders.png", "results/step.json": "docs/step.png"}
_TABLES = {
    "decode": decode.table,
    "augment": augment.table,
    "batch-norm": batch_norm.table,
    "loader": loader.table,
    "step": step.table,
    "train": train.table,
    "forecast": forecast.table,
    "small-maps": small_maps.table,
    "stem": stem.table,
}
_MARKED = re.compile(r"<!-- (results/[\w.-]+\.json) -->\n.*?<!-- end -->", re.DOTALL)


def _block(match: re.Match[str]) -> str:
    result = json.loads((ROOT / match[1]).read_text())
    return f"<!-- {match[1]} -->\n{_TABLES[result['regime']](result)}\n<!-- end -->"


def render(document: Path) -> str:
    """The document with every marked table made anew from its result file."""
    return _MARKED.sub(_block, document.read_text())


def main() -> int:
    """Runs the command line; 1 where `--check` finds what is not of its result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing, say what would")
    args = parser.parse_args()
    stale = []
    for document in DOCUMENTS:
        if render(document) != document.read_text():
            stale.append(document)
            if not args.check:
                document.write_text(render(document))
    for name, picture in CHARTS.items():
        source, path = ROOT / name, ROOT.parent / picture
        if not charts.is_current(source, path):
            stale.append(path)
            if not args.check:
                charts.draw(source, path)
    for changed in stale:
        print(f"{changed.relative_to(ROOT.parent)}: {'stale' if args.check else 'written'}")
    return int(args.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
