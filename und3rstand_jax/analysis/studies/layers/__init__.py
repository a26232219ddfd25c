"""What can be read from every layer by its probe: `study` says what `measures` measure, `figure` draws it."""
