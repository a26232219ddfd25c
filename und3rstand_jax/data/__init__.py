"""Pairs of views with known depth and cameras: rendered scenes and data sets on disk, loaded in batches."""
