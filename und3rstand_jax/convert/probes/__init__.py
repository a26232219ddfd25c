"""From the tensor names and shapes of a probe checkpoint to its config and name table."""
