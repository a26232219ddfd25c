"""DUSt3R's names in its PyTorch state dict, and which of them a checkpoint holds."""
