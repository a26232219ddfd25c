"""What a data set contains and whether its geometry is consistent: agreement of views, mistakes, diagnosis, inspection, description."""
