"""Engines: child processes that turn pairs into raw values, and what keeps them alive."""
