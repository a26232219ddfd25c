"""Intermediate tokens through the model's own head: `study` says what `measures` measure."""
