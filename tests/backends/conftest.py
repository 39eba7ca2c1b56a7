"""Fixtures of the contract suite."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from cases import Served, cases

from rerankd.service import Reranker
from support import golden_settings


@pytest.fixture(scope="module", params=list(cases()), ids=str)
async def served(
    request: pytest.FixtureRequest, anyio_backend: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Served]:
    """A golden model on a real engine process, started once per module."""
    case: Any = request.param
    async with Reranker(golden_settings(case.name, tmp_path_factory.mktemp("home"), **case.settings)) as one:
        yield Served(case, one)
