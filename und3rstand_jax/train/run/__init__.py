"""A run from first step to last: its folder, checkpoints, logs, interruption, loop and results."""
