"""All methods by the class of their config; a new method is one line of `METHODS`."""

import torch

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
from fastsimsiam.config.run import Config
from fastsimsiam.config.views import view_sizes
from fastsimsiam.errors import UserError
from fastsimsiam.methods.base import Method
from fastsimsiam.methods.byol import BYOL, BYOLNoMomentum
from fastsimsiam.methods.moco import MoCo
from fastsimsiam.methods.moco_v3 import MoCoV3
from fastsimsiam.methods.simclr import SimCLR
from fastsimsiam.methods.simsiam import SimSiam
from fastsimsiam.methods.supcon import SupCon
from fastsimsiam.methods.swav import SwAV
from fastsimsiam.methods.vi_simsiam import VISimSiam
from fastsimsiam.models.backbones import feature_extractor

METHODS: dict[type[MethodConfig], type[Method]] = {
    BYOLConfig: BYOL,
    BYOLNoMomentumConfig: BYOLNoMomentum,
    MoCoConfig: MoCo,
    MoCoV3Config: MoCoV3,
    SimCLRConfig: SimCLR,
    SimSiamConfig: SimSiam,
    SupConConfig: SupCon,
    SwAVConfig: SwAV,
    VISimSiamConfig: VISimSiam,
}
"""A method is constructed from a backbone, the number of its features, and the method's config."""


def register_method(config: type[MethodConfig], method: type[Method]) -> None:
    """Adds a method from outside of this package.

    Args:
        config: the class of its options.
        method: its class, constructed from a backbone, the number of its features, and the config.
    """
    METHODS[config] = method


def find_method(config: MethodConfig) -> type[Method]:
    """The class of a method.

    Raises:
        UserError: no class is registered for it.
    """
    if type(config) not in METHODS:
        raise UserError(
            f"no class is registered for the method {config.name}: import the module that calls "
            "register_method first"
        )
    return METHODS[type(config)]


def check_method(config: Config) -> None:
    """Refuses a run that its method cannot do.

    Raises:
        UserError: no class is registered for the method, its loss needs the whole batch, or it is
            defined for another number of views, or for views of one size.
    """
    method = find_method(config.method)
    if method.num_views not in (None, len(config.views)):
        raise UserError(
            f"views is {len(config.views)}, but {config.method.name} is defined for "
            f"{method.num_views}: give as many"
        )
    sizes = view_sizes(config.views, config.image_size)
    if method.joint_views and len(set(sizes)) > 1:
        raise UserError(
            f"views are of {' and '.join(map(str, sizes))} pixels, but {config.method.name} passes "
            "them through the network as one batch: give all --views.N.size the same value"
        )
    if method.whole_batch and config.accumulate > 1:
        raise UserError(
            f"--accumulate is {config.accumulate}, but {config.method.name} compares all images of a "
            "batch with one another, and parts of it would be another loss: pass --accumulate 1"
        )


def build_method(config: Config) -> Method:
    """The method with fresh weights; the same seed gives the same weights.

    Raises:
        UserError: see `find_method` and `feature_extractor`.
    """
    method = find_method(config.method)
    torch.manual_seed(config.seed)
    backbone, feature_dim = feature_extractor(config.arch, config.stem, config.zero_init_residual)
    return method(backbone, feature_dim, config.method)
