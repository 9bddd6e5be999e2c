"""Recipes: functions that return the config of a run."""
