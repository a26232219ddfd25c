"""Retraining the probes. So far: the loss and the test metric."""
