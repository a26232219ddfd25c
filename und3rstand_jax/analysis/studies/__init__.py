"""Studies: what the paper and its successors measure on multi-view transformers, each as one function from a `Setting` to a `Study`.

study            what every study takes and returns
study_files      a study as JSON, CSV, a table and figures
catalogue        the studies by name, with what each needs
layers/          the probes' error, matches and pose, layer by layer
heads/           what every attention head looks at
knock_out/       what is lost without heads, sublayers, and attention between the views
patching/        which stream carries view 2's place: values of one pair put into another
lens/            intermediate tokens through the model's own head
similarity/      how alike layers and views are, and how many dimensions tokens use
epipolar/        the fundamental matrix, read from averaged tokens
inputs/          views swapped, equal, unrelated, covered, and with less and less overlap
"""
