"""Measuring how well a reranker orders: a judged collection, a first stage, and the measures of the field."""

from __future__ import annotations

from importlib.util import find_spec

from rerankd.errors import MissingExtra


def check_installed() -> None:
    """Raise MissingExtra unless the libraries of `rerankd[eval]` are there."""
    missing = [name for name in ("Stemmer", "bm25s", "ir_measures", "scipy") if find_spec(name) is None]
    if missing:
        raise MissingExtra(
            f"Measuring needs libraries that are not installed: {', '.join(missing)}. They have 150 MB, most "
            "of it scipy, and serving does without them. Install them: pip install 'rerankd[eval]'"
        )
