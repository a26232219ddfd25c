"""What people look at: contact sheets, point clouds, figures, and the layer report on one self-contained page."""
