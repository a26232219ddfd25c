"""Pointmap probes (a small MLP on each token alone), epipolar probes and pose probes, with their configs and parameters."""
