"""Bottleneck blocks whose 1x1 convolutions take in BatchNorm: a variant of the step."""
