"""The report of a run: one HTML file with curves, neighbours, a map and the way to repeat it."""
