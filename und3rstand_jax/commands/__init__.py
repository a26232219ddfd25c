"""The command lines, one module each. Only they print."""
