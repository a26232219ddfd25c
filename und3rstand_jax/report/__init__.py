"""The layer report: what each layer of a model knows about a pair of images, as numbers, figures and one page to look at."""
