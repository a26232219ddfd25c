"""The implementation of `benchmarks.accelerator`: its parts, the processes they run in, and the tables of its results."""
