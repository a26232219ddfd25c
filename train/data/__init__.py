"""Pairs with known geometry: rendered scenes, and the data sets that DUSt3R was trained on."""
