"""A training run from its first step to its last: folder, checkpoints, logs, interruption, the loop, and what it ends with."""
