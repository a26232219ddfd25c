"""What every floor may use: errors, files, text, progress, the machine. Nothing here knows about models."""
