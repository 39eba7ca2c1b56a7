"""Model files: what is in them, how each is scored, where they come from and where they are kept."""
