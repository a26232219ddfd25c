"""What every attention head looks at: `study` reports what `measures` computes, `by_descriptors` adds what descriptors show."""
