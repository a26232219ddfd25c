"""The converted checkpoint on disk: its format, its parameter trees, and how they are read, checked and copied."""
