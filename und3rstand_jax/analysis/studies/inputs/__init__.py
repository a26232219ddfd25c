"""What the model does with other inputs than two views of one place: `study`, with whole views (`conditions`) and patches (`covered`)."""
