"""Model files: what they are, where they come from, and how each is scored."""
