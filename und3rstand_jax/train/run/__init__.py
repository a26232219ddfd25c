"""A run from first step to last: its folder, checkpoints, logs, interruption, the loop, and what it ends with."""
