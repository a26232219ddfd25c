"""Data sets on disk, read as they lie: what DUSt3R's preprocessing writes, and a format for people's own. No JAX here."""
