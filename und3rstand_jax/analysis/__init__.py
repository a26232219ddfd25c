"""What is measured of a model: errors by layer, matches and poses of a pair, attention on true places; tables and plots."""
