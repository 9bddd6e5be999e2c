"""The report of a run: one HTML file with curves, neighbors, a map and the way to repeat it."""
