"""Data sets on disk: one module for each kind, and the code they share."""
