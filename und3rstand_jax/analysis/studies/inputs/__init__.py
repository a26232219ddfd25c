"""What the model does with inputs other than two views of one place: `study`, with whole views (`conditions`) and patches (`covered`)."""
