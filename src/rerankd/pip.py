"""How to run pip, also where this Python's environment has none, as those that uv makes.

pip knows the user's index, proxy and certificates; the copy in Python's `ensurepip` does, too, and runs out
of its wheel without being installed.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from rerankd.errors import FetchError


def command() -> list[str]:
    """The program and first arguments. Raises FetchError where this Python has no pip at all."""
    if find_spec("pip") is not None:
        return [sys.executable, "-P", "-m", "pip"]
    wheel = bundled()
    if wheel is not None:
        return [sys.executable, "-P", str(wheel / "pip")]
    raise FetchError(
        "This Python environment has no pip, which fetches from the package index. Install it: "
        "uv pip install pip (with uv), python -m ensurepip, or apt install python3-venv (Debian, Ubuntu)."
    )


def bundled() -> Path | None:
    """The wheel of pip that comes with Python; systems that take Python apart keep it elsewhere."""
    ensurepip = find_spec("ensurepip")
    folders = [Path(ensurepip.origin).parent / "_bundled"] if ensurepip and ensurepip.origin else []
    if place := sysconfig.get_config_var("WHEEL_PKG_DIR"):
        folders.append(Path(place))
    return next((wheel for folder in folders for wheel in sorted(folder.glob("pip-*.whl"))), None)


def environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment for it: where only uv's index is set, that is pip's, too."""
    of_uv = {
        "PIP_INDEX_URL": environ.get("UV_DEFAULT_INDEX") or environ.get("UV_INDEX_URL"),
        "PIP_EXTRA_INDEX_URL": environ.get("UV_INDEX") or environ.get("UV_EXTRA_INDEX_URL"),
    }
    # uv may give an index a name: NAME=URL.
    taken = {
        name: " ".join(one.partition("=")[2] if "=" in one.split("://")[0] else one for one in value.split())
        for name, value in of_uv.items()
        if value and not environ.get(name)
    }
    return {**environ, **taken}
