"""Where a checkpoint comes from (hub, folder, file), as one lazy table of named tensors."""
