"""`python -m train plan`: what a step takes on a device that need not be there. Compiled for it, counted, never run."""
