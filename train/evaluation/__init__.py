"""How good probes are: errors of every layer's pointmaps, the pose that view 2's pointmap implies, and table and plot of both."""
