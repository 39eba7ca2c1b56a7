"""The user's data and configuration folders on this system."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import platformdirs

from rerankd.errors import ConfigError


def user_data() -> Path:
    """Return the default of the setting `home`. Raises ConfigError for a user without a home folder."""
    folder = of_user(platformdirs.user_data_dir)
    if folder is None:
        raise ConfigError(
            f"rerankd has no folder for models and logs: HOME is not set, and the user with id {os.getuid()} "
            "has no home folder. Set RERANKD_HOME to a folder that this user can write to."
        )
    return folder


def of_user(locate: Callable[..., str]) -> Path | None:
    """Return the folder that a platformdirs function names; None for a user without a home folder, as in a
    container that runs under an arbitrary uid."""
    with contextlib.suppress(RuntimeError):
        folder = Path(locate("rerankd", appauthor=False))
        # Some versions leave "~" unexpanded, which would create a folder of that name in the current one.
        return folder if folder.is_absolute() else None
    return None
