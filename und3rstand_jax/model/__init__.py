"""DUSt3R, MASt3R and VGGT in Linen. Shared configs, layer ids, transformer parts and heads are here; each family has a folder."""
