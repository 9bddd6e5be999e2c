"""All methods by their config; a new one is one line of `METHODS`."""

import torch

from fastsimsiam.config.methods import MethodConfig, SimSiamConfig
from fastsimsiam.config.run import Config
from fastsimsiam.errors import UserError
from fastsimsiam.methods.base import Method
from fastsimsiam.methods.simsiam import SimSiam
from fastsimsiam.models.backbones import feature_extractor

METHODS: dict[type[MethodConfig], type[Method]] = {SimSiamConfig: SimSiam}
"""Each is built from a backbone, the number of its features, and the method's config."""


def method_class(config: Config) -> type[Method]:
    """The class of a run's method.

    Raises:
        UserError: the method cannot run as the config has it.
    """
    method = METHODS[type(config.method)]
    name = config.method.name
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
