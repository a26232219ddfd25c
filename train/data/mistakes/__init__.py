"""The usual mistakes in depth and cameras, and how to undo each."""
