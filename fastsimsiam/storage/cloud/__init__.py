"""Data sets at URLs, fetched into a cache on the disk."""
