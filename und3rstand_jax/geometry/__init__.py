"""Cameras, poses, the loss, error metrics and matches between views, as functions of arrays."""
