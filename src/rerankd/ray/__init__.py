"""rerankd on a Ray cluster: `Scorer` for jobs with Ray Data; for Ray Serve `build`, which makes the
application, and `app`, which is that of the settings file.

Ray's usage reports are switched off before Ray is imported, because rerankd sends no usage data. Ray reads
this variable when it starts a cluster, and passes it on to its processes.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from rerankd.errors import MissingExtra

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

# Imported when first used: Ray takes a second, and may not be installed.
_MODULES = {"Scorer": "scorer", "build": "serve_app"}


def check_installed() -> None:
    """Raise MissingExtra if Ray is not installed."""
    if find_spec("ray") is None:
        raise MissingExtra("Ray is not installed. Install it with: pip install 'rerankd[ray]'")


def __getattr__(name: str) -> Any:
    if name == "app":
        return __getattr__("build")({})
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    check_installed()
    return getattr(import_module(f"rerankd.ray.{_MODULES[name]}"), name)
