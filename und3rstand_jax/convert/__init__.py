"""Converts PyTorch checkpoints to Flax parameter trees and back: open the source, plan each part, write, verify, export."""
