"""The backends, in the order in which they are asked. A new one is a folder and a line here.

The settings are made from the rows when they are imported, which every command does: what takes long to
import, a row imports where it is used.
"""

from __future__ import annotations

from typing import Protocol

from rerankd.backends import options
from rerankd.backends.llama.backend import LlamaBackend
from rerankd.backends.openvino.backend import OpenVinoBackend


class Row(Protocol):
    """What the settings are made from: `title` is the backend's name in sentences, `summary` what it is good
    for."""

    name: str
    title: str
    summary: str

    @property
    def Options(self) -> type[options.Options]:
        """Its own settings."""


BACKENDS: list[Row] = [OpenVinoBackend(), LlamaBackend()]
