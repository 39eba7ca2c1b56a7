"""Backends run models: one folder per backend, the interface they share, and the choice between them."""
