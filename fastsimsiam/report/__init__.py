"""The report of runs: one HTML file with curves, neighbors, a map of features and the config."""
