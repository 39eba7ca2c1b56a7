"""A hook of mkdocs: links from docs/ to files elsewhere in the repository lead to the repository."""

from __future__ import annotations

import re
from typing import Any


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    """Return the page's text with absolute links to what the site does not hold."""
    return re.sub(r"\]\(\.\./", f"]({config['extra']['repository']}/blob/main/", markdown)
