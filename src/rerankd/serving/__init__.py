"""The models that are served, and what is loaded on which device."""
