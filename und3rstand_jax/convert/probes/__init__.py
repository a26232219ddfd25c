"""Plans probe checkpoints: by what a mapping file says of their layers, else by known names, else by the recogniser of unknown ones."""
