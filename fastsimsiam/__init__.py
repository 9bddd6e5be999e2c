"""fastsimsiam: the fastest exact trainer for SimSiam and its siblings.

    from pathlib import Path
    import fastsimsiam

    config = fastsimsiam.recipe("imagenette", data=Path("data/imagenette"), epochs=200)
    summary = fastsimsiam.pretrain(config)
    print(fastsimsiam.knn(config.out, config.data, k=(20,)))

Everything that the command line does is a function here; what an argument means is in its docstring.
"""

import importlib
from typing import TYPE_CHECKING, Any

from fastsimsiam.version import __version__

if TYPE_CHECKING:
    from fastsimsiam.api import Loader, load_backbone, recipe
    from fastsimsiam.embedding import embed
    from fastsimsiam.exporting import export
    from fastsimsiam.inspection import inspect
    from fastsimsiam.linear_probe import linear
    from fastsimsiam.pretraining import pretrain
    from fastsimsiam.score import knn

__all__ = [
    "Loader", "__version__", "embed", "export", "inspect", "knn", "linear", "load_backbone", "pretrain",
    "recipe",
]  # fmt: skip
_WHERE = {
    "Loader": "api", "load_backbone": "api", "recipe": "api", "embed": "embedding",
    "export": "exporting", "inspect": "inspection", "knn": "score", "linear": "linear_probe",
    "pretrain": "pretraining",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    # Imported when asked for: `fastsimsiam --help` should not wait for torch.
    if name not in _WHERE:
        raise AttributeError(f"module 'fastsimsiam' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fastsimsiam.{_WHERE[name]}"), name)
