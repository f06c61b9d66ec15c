"""The run directory: its contents, its owner, and its progress."""
