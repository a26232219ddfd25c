"""Scripts that measure both sides in one run and print a ratio: `python -m benchmarks.NAME`."""
