"""The methods by their config."""

import torch

from fastsimsiam.backbones import feature_extractor
from fastsimsiam.config import Config
from fastsimsiam.methods.base import Method
from fastsimsiam.methods.simsiam import SimSiam


def build_method(config: Config) -> Method:
    """The method with fresh weights; the same seed gives the same weights."""
    torch.manual_seed(config.seed)
    backbone, feature_dim = feature_extractor(config.arch, config.stem)
    return SimSiam(backbone, feature_dim, config.method)
