"""What a step takes on a device that need not be there: compiled for it, counted, never run."""
