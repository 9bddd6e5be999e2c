"""All methods by the class of their config; a new method is one line of `METHODS`."""

import torch

from fastsimsiam.config.methods import MethodConfig, SimSiamConfig
from fastsimsiam.config.run import Config
from fastsimsiam.errors import UserError
from fastsimsiam.methods.base import Method
from fastsimsiam.methods.simsiam import SimSiam
from fastsimsiam.models.backbones import feature_extractor

METHODS: dict[type[MethodConfig], type[Method]] = {SimSiamConfig: SimSiam}
"""A method is constructed from a backbone, the number of its features, and the method's config."""


def register_method(config: type[MethodConfig], method: type[Method]) -> None:
    """Adds a method from outside of this package.

    Args:
        config: the class of its options.
        method: its class, constructed from a backbone, the number of its features, and the config.
    """
    METHODS[config] = method


def method_class(config: Config) -> type[Method]:
    """The class of a run's method.

    Raises:
        UserError: there is no such method, or it cannot run with this config.
    """
    name = config.method.name
    if type(config.method) not in METHODS:
        raise UserError(
            f"no class implements the method {name}: add it to methods.registry.METHODS"
        )
    method = METHODS[type(config.method)]
    if method.whole_batch and config.accumulate > 1:
        raise UserError(
            f"--accumulate is {config.accumulate}, but {name} compares all images of a batch with one "
            "another, and parts of it would be another loss: pass --accumulate 1"
        )
    return method


def build_method(config: Config) -> Method:
    """The method with fresh weights; the same seed gives the same weights.

    Raises:
        UserError: as `method_class`.
    """
    method = method_class(config)
    torch.manual_seed(config.seed)
    backbone, feature_dim = feature_extractor(config.arch, config.stem)
    return method(backbone, feature_dim, config.method)
