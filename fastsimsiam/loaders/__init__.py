"""Loaders: decode once, cut every view's box, hand over uint8 crops. One contract, see batch.py."""
