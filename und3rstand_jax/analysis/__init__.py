"""What is measured of a model: functions from a backbone, its probes and data to a documented record.

    inputs                    a pair of views: two photos, or a rendered scene with its ground truth
    pair                      `analyse_pair`: every layer's points, errors, matches and pose on one pair, and the attention maps
    batch_errors              pairs of a data set in batches, and every layer's errors on one of them
    evaluate                  `evaluate_on`: their averages over held-out pairs
    evaluation_files          an evaluation as metrics.json, layers.csv, layers.png and a printed table
    constant_pointmap         the best pointmap that does not depend on the images
    two_views                 `two_views_on`: whether a model uses both views
    true_place_attention      how much attention lies where the other view sees the same place
    layer_study               `study_layers`: means over held-out scenes, layer by layer and head by head
    layer_study_files         a layer study as JSON, Markdown tables and figures
    layer_plot                figures over the layers of a network

Nothing here prints. Progress bars are off unless asked for; messages go to the `und3rstand_jax` logger.
"""
