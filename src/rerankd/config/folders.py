"""The user's folders on this system."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import platformdirs

from rerankd.errors import ConfigError


def user_data() -> Path:
    folder = of_user(platformdirs.user_data_dir)
    if folder is None:
        raise ConfigError(
            "There is no folder for models and logs: HOME is not set, and the user with the id "
            f"{os.getuid()} has no home. Set RERANKD_HOME to a folder that this user may write to."
        )
    return folder


def of_user(place: Callable[..., str]) -> Path | None:
    """One of the user's folders; None for a user without a home, as in a container with a uid of its own."""
    with contextlib.suppress(RuntimeError):
        folder = Path(place("rerankd", appauthor=False))
        # Some versions leave "~" as it is, which would be a folder of this name in the current one.
        return folder if folder.is_absolute() else None
    return None
