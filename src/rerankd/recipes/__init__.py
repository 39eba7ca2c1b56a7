"""Recipes: how each model is scored, or why it is refused."""
