"""The fundamental matrix, read from averaged tokens: `study` says what `measures` measure, `figure` draws it."""
