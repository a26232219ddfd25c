"""The command lines, one module each. They alone print."""
