"""Capabilities of this machine, the bottleneck of a run on it, and the forecast of its duration."""
