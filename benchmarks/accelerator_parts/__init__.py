"""What `benchmarks.accelerator` runs: its parts, the processes they run in, and the tables of its results."""
