"""One training step of all probes: the backbone once, then one probe's loss, gradient and update mapped over the layers."""
