"""Results for users: all pointmaps of some photos as files, and the layer report, one self-contained page with figures and numbers."""
