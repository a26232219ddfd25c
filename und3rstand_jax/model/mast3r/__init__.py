"""MASt3R (Leroy et al., ECCV 2024): DUSt3R with a head for local features; what it adds to config, module, shapes and names."""
