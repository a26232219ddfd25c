"""Intermediate tokens through the model's own head: `study` reports what `measures` computes."""
