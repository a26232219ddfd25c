"""Plans probe checkpoints: by a mapping file that states their layers, else by known names, else by the recogniser of unknown ones."""
