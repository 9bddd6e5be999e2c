"""fastsimsiam: self-supervised pretraining of image backbones, with fast loaders.

    import fastsimsiam

    config = fastsimsiam.recipe("imagenette", data="data/imagenette", out="runs/a", epochs=200)
    summary = fastsimsiam.pretrain(config)
    print(fastsimsiam.knn(config.out, config.data, k=(20,)).trained)

This module is the whole public API: functions, their options and results, and what the author of a
method needs. Other modules may change between versions.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from fastsimsiam.version import __version__

if TYPE_CHECKING:
    from fastsimsiam.config.evaluation import EvalOptions, LinearConfig
    from fastsimsiam.config.methods import (
        BYOLConfig,
        BYOLNoMomentumConfig,
        MethodConfig,
        MoCoConfig,
        MoCoV3Config,
        SimCLRConfig,
        SimSiamConfig,
        SupConConfig,
        SwAVConfig,
        VISimSiamConfig,
    )
    from fastsimsiam.config.optimizer import OptimizerConfig
    from fastsimsiam.config.run import CheckpointConfig, Config, CpuConfig, DaliConfig, KnnConfig
    from fastsimsiam.config.supervised import DistillConfig, FinetuneConfig
    from fastsimsiam.config.views import NormalizeConfig, ViewSpec
    from fastsimsiam.errors import BadImageError, UserError
    from fastsimsiam.evaluate.collapse import CollapseMetrics
    from fastsimsiam.evaluate.distill import DistillResult, distill
    from fastsimsiam.evaluate.finetune import FinetuneResult, finetune
    from fastsimsiam.evaluate.inspect import InspectResult, inspect
    from fastsimsiam.evaluate.knn import KnnResult, knn
    from fastsimsiam.evaluate.linear_probe import LinearResult, linear
    from fastsimsiam.evaluate.pretrained import load_backbone
    from fastsimsiam.evaluate.uncertainty import Measure, UncertaintyResult, uncertainty
    from fastsimsiam.methods.base import Method, ParameterGroup, Progress
    from fastsimsiam.methods.registry import build_method, register_method
    from fastsimsiam.recipes.catalogue import recipe
    from fastsimsiam.tools.embed import embed
    from fastsimsiam.tools.export import export
    from fastsimsiam.train.pretrain import pretrain
    from fastsimsiam.train.summary import Summary
    from fastsimsiam.view_loader import Loader

__all__ = [
    "BYOLConfig",
    "BYOLNoMomentumConfig",
    "BadImageError",
    "CheckpointConfig",
    "CollapseMetrics",
    "Config",
    "CpuConfig",
    "DaliConfig",
    "DistillConfig",
    "DistillResult",
    "EvalOptions",
    "FinetuneConfig",
    "FinetuneResult",
    "InspectResult",
    "KnnConfig",
    "KnnResult",
    "LinearConfig",
    "LinearResult",
    "Loader",
    "Measure",
    "Method",
    "MethodConfig",
    "MoCoConfig",
    "MoCoV3Config",
    "NormalizeConfig",
    "OptimizerConfig",
    "ParameterGroup",
    "Progress",
    "SimCLRConfig",
    "SimSiamConfig",
    "Summary",
    "SupConConfig",
    "SwAVConfig",
    "UncertaintyResult",
    "UserError",
    "VISimSiamConfig",
    "ViewSpec",
    "__version__",
    "build_method",
    "distill",
    "embed",
    "export",
    "finetune",
    "inspect",
    "knn",
    "linear",
    "load_backbone",
    "pretrain",
    "recipe",
    "register_method",
    "uncertainty",
]
_MODULES = {
    "config.evaluation": ("EvalOptions", "LinearConfig"),
    "config.methods": (
        "BYOLConfig",
        "BYOLNoMomentumConfig",
        "MethodConfig",
        "MoCoConfig",
        "MoCoV3Config",
        "SimCLRConfig",
        "SimSiamConfig",
        "SupConConfig",
        "SwAVConfig",
        "VISimSiamConfig",
    ),
    "config.optimizer": ("OptimizerConfig",),
    "config.run": ("CheckpointConfig", "Config", "CpuConfig", "DaliConfig", "KnnConfig"),
    "config.supervised": ("DistillConfig", "FinetuneConfig"),
    "config.views": ("NormalizeConfig", "ViewSpec"),
    "errors": ("BadImageError", "UserError"),
    "evaluate.collapse": ("CollapseMetrics",),
    "evaluate.distill": ("DistillResult", "distill"),
    "evaluate.finetune": ("FinetuneResult", "finetune"),
    "evaluate.inspect": ("InspectResult", "inspect"),
    "evaluate.knn": ("KnnResult", "knn"),
    "evaluate.linear_probe": ("LinearResult", "linear"),
    "evaluate.pretrained": ("load_backbone",),
    "evaluate.uncertainty": ("Measure", "UncertaintyResult", "uncertainty"),
    "methods.base": ("Method", "ParameterGroup", "Progress"),
    "methods.registry": ("build_method", "register_method"),
    "recipes.catalogue": ("recipe",),
    "tools.embed": ("embed",),
    "tools.export": ("export",),
    "train.pretrain": ("pretrain",),
    "train.summary": ("Summary",),
    "view_loader": ("Loader",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    # Imported on first use: importing the package must not load torch.
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'fastsimsiam' has no attribute {name!r}")
    if "torch" not in sys.modules:
        importlib.import_module("fastsimsiam.system.resources").limit_threads()
    return getattr(importlib.import_module(f"fastsimsiam.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
