"""Writes the tables of result files into the documents and draws their charts.

    python -m benchmarks.render            # a test runs it with --check

Documents mark where a table goes: `<!-- results/loader.json -->` ... `<!-- end -->`. Charts need
matplotlib.
"""

import argparse
import re
import sys
from pathlib import Path

from benchmarks import (
    augment,
    batch_norm,
    certainty,
    charts,
    conv1x1,
    decode,
    few_labels,
    forecast,
    loader,
    method_steps,
    multi_crop,
    scale,
    small_maps,
    stem,
    step,
    storages,
    train,
)
from benchmarks.gpu import summary as gpu
from benchmarks.harness import read_result

ROOT = Path(__file__).parent.parent
DOCUMENTS = (
    ROOT / "README.md",
    *(ROOT.parent / "docs" / f"{name}.md" for name in ("loaders", "results")),
)
CHARTS = {"results/loader.json": "docs/loaders.png", "results/step.json": "docs/step.png"}
TABLES = {
    "decode": decode.table,
    "augment": augment.table,
    "batch-norm": batch_norm.table,
    "certainty": certainty.table,
    "conv1x1": conv1x1.table,
    "few-labels": few_labels.table,
    "loader": loader.table,
    "step": step.table,
    "step-methods": method_steps.table,
    "train": train.table,
    "forecast": forecast.table,
    "gpu": gpu.table,
    "multi-crop": multi_crop.table,
    "small-maps": small_maps.table,
    "scale": scale.table,
    "stem": stem.table,
    "storages": storages.table,
}
_MARKED = re.compile(r"<!-- (results/[\w.-]+\.json) -->\n.*?<!-- end -->", re.DOTALL)


def _block(match: re.Match[str]) -> str:
    result = read_result(ROOT / match[1])
    return f"<!-- {match[1]} -->\n{TABLES[result['regime']](result)}\n<!-- end -->"


def render(document: Path) -> str:
    """The document with every marked table rendered from its result file."""
    return _MARKED.sub(_block, document.read_text())


def main() -> int:
    """Runs the command line; returns 1 if `--check` finds a stale table or chart."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing, name what is stale")
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
    for path in stale:
        print(f"{path.relative_to(ROOT.parent)}: {'stale' if args.check else 'written'}")
    return int(args.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
