"""DUSt3R in Linen: its config and layer ids, shared transformer parts, heads, and the model as a pure function."""
