"""The methods by their config."""

import torch

from fastsimsiam.config.run import Config
from fastsimsiam.methods.base import Method
from fastsimsiam.methods.simsiam import SimSiam
from fastsimsiam.models.backbones import feature_extractor


def build_method(config: Config) -> Method:
    """The method with fresh weights; the same seed gives the same weights."""
    torch.manual_seed(config.seed)
    backbone, feature_dim = feature_extractor(config.arch, config.stem)
    return SimSiam(backbone, feature_dim, config.method)
