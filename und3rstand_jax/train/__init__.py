"""Training: options, the task they describe, one step, the run around it, and a plan of what a step will take."""
