"""VGGT (Wang et al., CVPR 2025): config, modules, parameter shapes and the names of its PyTorch tensors."""
