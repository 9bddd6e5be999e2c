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
    from fastsimsiam.evaluate.inspect import inspect
    from fastsimsiam.evaluate.knn import knn
    from fastsimsiam.evaluate.linear_probe import linear
    from fastsimsiam.evaluate.pretrained import load_backbone
    from fastsimsiam.recipes.catalogue import recipe
    from fastsimsiam.tools.embed import embed
    from fastsimsiam.tools.export import export
    from fastsimsiam.train.pretrain import pretrain
    from fastsimsiam.view_loader import Loader

__all__ = [
    "Loader",
    "__version__",
    "embed",
    "export",
    "inspect",
    "knn",
    "linear",
    "load_backbone",
    "pretrain",
    "recipe",
]
_WHERE = {
    "Loader": "view_loader",
    "load_backbone": "evaluate.pretrained",
    "recipe": "recipes.catalogue",
    "embed": "tools.embed",
    "export": "tools.export",
    "inspect": "evaluate.inspect",
    "knn": "evaluate.knn",
    "linear": "evaluate.linear_probe",
    "pretrain": "train.pretrain",
}


def __getattr__(name: str) -> Any:
    # Imported when asked for: `fastsimsiam --help` should not wait for torch.
    if name not in _WHERE:
        raise AttributeError(f"module 'fastsimsiam' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fastsimsiam.{_WHERE[name]}"), name)
