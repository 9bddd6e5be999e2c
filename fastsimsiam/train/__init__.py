"""Pretraining: the loop, the step, and the command that runs them."""
