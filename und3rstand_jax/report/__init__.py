"""What users look at: every pointmap of some photos as files, and the layer report, one self-contained page with figures and numbers."""
