"""What every attention head looks at: `study` says what `measures` measure, `by_descriptors` adds what a model with descriptors shows."""
