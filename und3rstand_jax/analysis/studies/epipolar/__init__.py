"""The fundamental matrix, read from averaged tokens: `study` reports what `measures` computes, `figure` draws it."""
