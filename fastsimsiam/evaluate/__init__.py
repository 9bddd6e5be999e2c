"""Evaluations of frozen features: kNN, linear, collapse."""
