"""`rerankd eval`: measure ranking quality (nDCG, MRR, recall) on a collection with judgements."""

from __future__ import annotations

from importlib.util import find_spec

from rerankd.errors import MissingExtra


def check_installed() -> None:
    """Raise MissingExtra unless the libraries of `rerankd[eval]` are installed."""
    missing = [name for name in ("Stemmer", "bm25s", "ir_measures", "scipy") if find_spec(name) is None]
    if missing:
        raise MissingExtra(
            f"rerankd eval needs libraries that are not installed: {', '.join(missing)}. They take 150 MB, "
            "most of it scipy; serving does not need them. To install them: pip install 'rerankd[eval]'"
        )
