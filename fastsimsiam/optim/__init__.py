"""Optimizers and learning-rate schedules, for pretraining and the linear probe."""
