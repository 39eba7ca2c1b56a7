"""A headless Chromium for tests of the page; it checks that no tab logs an error or contacts another host."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


_MISSING = "the page's tests need Chromium: apt install chromium, or name one with CHROMIUM=/path"


def program() -> str:
    """Return the path of Chromium. Without one the test is skipped; if CI is set it fails, because nobody
    would notice a skipped test there."""
    if found := os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None):
        return found
    if os.environ.get("CI"):
        pytest.fail(_MISSING)
    pytest.skip(_MISSING)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    path = program()
    with sync_playwright() as playwright:
        # Without a sandbox, since it needs rights that root in a container has not.
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


class Watched:
    """A tab, its console errors, and its requests to other hosts."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        options = {"locale": "en-GB", "viewport": {"width": 1280, "height": 900}, **options}
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(20_000)
        self.page: Page = self.context.new_page()
        self.url = url
        self.errors: list[str] = []
        self.elsewhere: list[str] = []
        here = urlsplit(url).netloc

        def on_console(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                self.errors.append(message.text)

        def on_request(request: Request) -> None:
            if urlsplit(request.url).netloc != here:
                self.elsewhere.append(request.url)

        self.page.on("console", on_console)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", on_request)

    def open(self, part: str = "") -> Page:
        self.page.goto(f"{self.url}/#{part}")
        return self.page

    def picture(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=folder / f"{name}.png", full_page=True)

    def forget(self, status: str) -> None:
        """Remove one expected console error: Chromium itself logs every error response."""
        assert len(self.errors) == 1 and f"status of {status} " in self.errors.pop()

    def close(self) -> None:
        """Raise AssertionError if there was an error or a request to another host."""
        self.context.close()
        assert not self.errors, self.errors
        assert not self.elsewhere, self.elsewhere
