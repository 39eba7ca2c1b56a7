"""Measuring how fast rerank servers are, side by side: the same requests in turn, and their ratios."""
