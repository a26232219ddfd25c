"""DUSt3R (Wang et al., CVPR 2024): config, modules, parameter shapes and the names of its PyTorch tensors."""
