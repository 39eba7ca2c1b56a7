"""Takes the screenshots in docs/pictures from the status page: `python scripts/pictures.py`. Requires
Chromium.

`make docs` does not run it, because browsers render slightly differently on each machine.
"""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import Page

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
sys.path.append(str(ROOT / "tests"))

from browser import chromium  # noqa: E402
from support import start_serving  # noqa: E402

_ADDRESS = "http://192.168.1.20:11440"


def try_it(page: Page) -> None:
    """The example that a first visit shows."""
    page.locator("#answers:not([aria-busy]) .rows .row").first.wait_for()


def connect(page: Page) -> None:
    page.locator("#address").fill(_ADDRESS)
    page.get_by_role("button", name="Test").click()
    page.locator(".tested .right").wait_for()
    page.locator(".tested details[open] summary").click()


def main() -> None:
    server = start_serving(ROOT / ".test-home", "builtin:e5")
    PICTURES.mkdir(exist_ok=True)
    try:
        with chromium() as browser:
            # Tall: rows outside of the window are not drawn.
            page = browser.new_page(
                viewport={"width": 1280, "height": 1190}, locale="en-GB", reduced_motion="reduce"
            )
            for name, prepare in {"try": try_it, "connect": connect}.items():
                page.goto(f"{server.url}/#{name}")
                page.locator("#served .dot").wait_for()
                prepare(page)
                page.screenshot(path=PICTURES / f"{name}.png", full_page=True, animations="disabled")
    finally:
        server.stop()


if __name__ == "__main__":
    main()
