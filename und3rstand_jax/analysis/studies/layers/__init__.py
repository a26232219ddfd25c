"""What can be read from every layer by its probe: `study` reports what `measures` computes, `figure` draws it."""
