"""The options of every method.

A run's `Config.method` is one of these. Its `name` tells which: in checkpoints, and for the class that
implements it (methods/registry.py). A new method is a file here, and a line below.
"""

from fastsimsiam.config.methods.base import MethodConfig, by_name
from fastsimsiam.config.methods.byol import BYOLConfig, BYOLNoMomentumConfig
from fastsimsiam.config.methods.moco import MoCoConfig
from fastsimsiam.config.methods.moco_v3 import MoCoV3Config
from fastsimsiam.config.methods.simclr import SimCLRConfig
from fastsimsiam.config.methods.simsiam import SimSiamConfig
from fastsimsiam.config.methods.supcon import SupConConfig
from fastsimsiam.config.methods.swav import SwAVConfig
from fastsimsiam.config.methods.vi_simsiam import VISimSiamConfig

__all__ = [
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
    "by_name",
]
