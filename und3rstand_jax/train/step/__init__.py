"""One training step, as a pure function of state and batch, for the probes or for the backbone itself."""
