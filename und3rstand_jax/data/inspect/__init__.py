"""What a data set holds and whether its geometry is consistent: agreement of views, mistakes, diagnosis, inspection, description."""
