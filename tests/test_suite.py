"""What `make test` does on a machine that lacks something."""

from __future__ import annotations

import pytest

import browser


@pytest.mark.parametrize("ci", [False, True])
def test_without_chromium_the_pages_tests_are_skipped_and_ci_forbids_it(
    monkeypatch: pytest.MonkeyPatch, ci: bool
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setenv("CI", "true" if ci else "")
    with pytest.raises(pytest.fail.Exception if ci else pytest.skip.Exception, match="apt install chromium"):
        browser.program()
