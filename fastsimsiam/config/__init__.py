"""The configuration of a run as plain data; nothing here needs torch."""
