"""Measurements of a model: functions from a backbone, its probes and data to a documented record.

    inputs                    the views: photos, or a rendered scene with its ground truth
    analyse, view_set         `analyse_views`: every layer's points, errors, matches and poses on one set, and the attention maps
    batch_errors              pairs of a data set in batches, and every layer's errors on one batch
    evaluate                  `evaluate_on`: their averages over held-out pairs
    evaluation_files          an evaluation as metrics.json, layers.csv, layers.png and a printed table
    constant_pointmap         the best pointmap that does not depend on the images
    two_views                 `two_views_on`: whether a model uses both views
    true_place_attention      how much attention falls where the other view sees the same place
    sweep, sweep_pass         many edits on many pairs, each run from the layer before it
    ablation_study …          what is lost without heads and sublayers, with random controls; `attribution`, its first-order estimate
    held_out                  held-out pairs, and for rendered ones twins that share view 1
    pair_measures             the metrics of an edited pass on them
    head_use, own_head        what each head costs on one pair, and any layer read by the model's own head (the report's panel)
    studies/                  eight experiments, each a function from a setting to a study
    layer_plot                figures over the layers of a network

Nothing here prints. Progress bars are off unless asked for; messages go to the `und3rstand_jax` logger.
"""
