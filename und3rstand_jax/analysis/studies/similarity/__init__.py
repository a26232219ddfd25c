"""How alike layers and views are, and how many dimensions their tokens use: `study` reports what `measures` computes."""
