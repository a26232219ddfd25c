"""DUSt3R, MASt3R and VGGT in Linen: what they share here, configs, layer ids, transformer parts and heads, and a folder for each."""
