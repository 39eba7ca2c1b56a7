"""rerankd serves reranker models on your own machine.

These are the public names. They are imported on first use, so that the engine's worker process, which is also
part of this package, starts without the web framework.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from rerankd.api.app import create_app, lifespan
    from rerankd.api.routes import router
    from rerankd.config import Settings
    from rerankd.content import Document, Image
    from rerankd.cross_encoder import AsyncCrossEncoder, CrossEncoder
    from rerankd.service import Reranker
    from rerankd.sync_reranker import SyncReranker

__all__ = [
    "AsyncCrossEncoder",
    "CrossEncoder",
    "Document",
    "Image",
    "Reranker",
    "Settings",
    "SyncReranker",
    "__version__",
    "create_app",
    "lifespan",
    "router",
]

_HOMES = {
    "AsyncCrossEncoder": "rerankd.cross_encoder",
    "CrossEncoder": "rerankd.cross_encoder",
    "Document": "rerankd.content",
    "Image": "rerankd.content",
    "create_app": "rerankd.api.app",
    "lifespan": "rerankd.api.app",
    "router": "rerankd.api.routes",
    "Settings": "rerankd.config",
    "Reranker": "rerankd.service",
    "SyncReranker": "rerankd.sync_reranker",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOMES:
        raise AttributeError(f"module 'rerankd' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
