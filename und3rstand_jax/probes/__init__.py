"""The pointmap probe: a small MLP on each token alone, its config, and a set of them bound to their parameters."""
