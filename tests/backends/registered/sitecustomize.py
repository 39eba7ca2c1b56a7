"""Registers the overlap backend in every Python process that has this folder on PYTHONPATH.

This runs before the settings are built from the table, also in a service that another program starts."""

import sys
from pathlib import Path

from rerankd.backends.table import BACKENDS

sys.path.append(str(Path(__file__).parents[1]))
from overlap import OVERLAP

BACKENDS.append(OVERLAP)
