"""Pairs of views with known depth and cameras, in batches: what a pair is (records), where pairs come from (specification, synthetic/,
files/), how they are loaded (loader), what the device computes from a batch (example), and how to check a data set (inspect/)."""
