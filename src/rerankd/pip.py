"""Download wheels from the package index with pip, even in an environment without pip, such as uv's.

pip knows the user's index, proxy and certificates. Without pip, the copy in Python's `ensurepip` is used,
which runs from its wheel without installation.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

from rerankd import network_errors
from rerankd.errors import FetchError


def command() -> list[str]:
    """Return the command that runs pip. Raises FetchError if this Python has no pip at all."""
    if find_spec("pip") is not None:
        return [sys.executable, "-P", "-m", "pip"]
    wheel = bundled()
    if wheel is not None:
        return [sys.executable, "-P", str(wheel / "pip")]
    raise FetchError(
        "This Python environment has no pip, which downloads from the package index. Install it: "
        "uv pip install pip (with uv), python -m ensurepip, or apt install python3-venv (Debian, Ubuntu)."
    )


def bundled() -> Path | None:
    """Return the pip wheel that comes with Python. Distributions that split Python keep it in another
    folder."""
    ensurepip = find_spec("ensurepip")
    folders = [Path(ensurepip.origin).parent / "_bundled"] if ensurepip and ensurepip.origin else []
    if place := sysconfig.get_config_var("WHEEL_PKG_DIR"):
        folders.append(Path(place))
    return next((wheel for folder in folders for wheel in sorted(folder.glob("pip-*.whl"))), None)


def environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment for pip: if only uv's index is configured, pip uses it."""
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


def download(
    requirement: str, folder: Path, *options: str, report: Callable[[int], None] = lambda done_bytes: None
) -> Path:
    """Download a wheel into `folder`, which must be empty, and return its path. `report` receives the number
    of bytes so far.

    Raises FetchError with pip's last lines, and OSError.
    """
    argv = [
        *command(), "download", requirement, "--no-deps", "--only-binary=:all:", "--no-cache-dir",
        "--disable-pip-version-check", "--quiet", "--progress-bar=off", "--no-input", f"--dest={folder}",
        *options,
    ]  # fmt: skip
    # Every version of pip downloads to TMPDIR, so the size of that folder is the progress.
    with network_errors.environment():
        environ = {**environment(), "TMPDIR": str(folder)}
    with subprocess.Popen(
        argv, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as child:
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    output = child.communicate(timeout=0.1)[0]
                    break
                report(_bytes_below(folder))
        except BaseException:
            child.kill()
            raise
    found = list(folder.glob("*.whl"))
    if child.returncode or not found:
        lines = [line for line in output.decode(errors="replace").splitlines() if "WARNING" not in line]
        quoted = "\n".join(f"  pip: {line.strip()}" for line in lines[-3:] if line.strip())
        advice = "Check the network and pip's index settings and try again."
        if os.strerror(errno.ENOSPC) in quoted:
            advice = (
                f"The disk of {folder.parent} is full. Free some space, or set RERANKD_HOME to another disk."
            )
        raise FetchError(f"pip could not download {requirement}.\n{quoted}\n{advice}")
    return found[0]


def _bytes_below(folder: Path) -> int:
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(root, name)).st_size
    return total
