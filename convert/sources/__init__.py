"""Where a checkpoint is and what it holds: hub, folder or file, as one lazy table of named tensors."""
