"""Values of one pair put into the pass of another that shares its view 1: `study` reports what `runs` computes."""
