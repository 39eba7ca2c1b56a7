"""Dialects: the request and response formats of other rerank services, one file each; table.py lists them."""
