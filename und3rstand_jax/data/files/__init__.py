"""Data sets on disk: what DUSt3R's preprocessing writes, and a format for your own. No JAX here."""
