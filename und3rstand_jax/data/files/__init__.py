"""Data sets on disk: one module for each kind, and what they share."""
