"""The test suite on a machine without Chromium: the page's tests are skipped, except in CI."""

from __future__ import annotations

import pytest

import browser


@pytest.mark.parametrize("ci", [False, True])
def test_without_chromium_the_page_tests_are_skipped_but_fail_in_ci(
    monkeypatch: pytest.MonkeyPatch, ci: bool
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setenv("CI", "true" if ci else "")
    with pytest.raises(pytest.fail.Exception if ci else pytest.skip.Exception, match="apt install chromium"):
        browser.program()
