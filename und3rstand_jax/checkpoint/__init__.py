"""The converted checkpoint on disk: its format, its parameter trees, and output folders that appear whole or not at all."""
