"""Listwise models on PyTorch, against the reference implementation: `make test-torch`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="no PyTorch here: make test-torch")

import listwise_models
from listwise_models import NAMES
from rerankd.service import Reranker
from support import Program, post
from test_listwise import GOLDENS, ONE, REQUESTS, ask, raw, settings

pytestmark = pytest.mark.anyio
BOUND = 1e-5


@pytest.mark.parametrize("name", NAMES)
async def test_a_checkpoint_has_the_scores_of_the_reference_on_torch(name: str, tmp_path: Path) -> None:
    model = listwise_models.build(name, tmp_path)
    async with Reranker(settings(model, tmp_path / "home", engine="torch", device="cpu")) as reranker:
        for what, request in REQUESTS.items():
            found = raw(await ask(reranker, **request))
            assert found == pytest.approx(GOLDENS[name][what], abs=BOUND), what


async def test_a_gguf_file_has_the_scores_of_the_reference_on_torch(tmp_path: Path) -> None:
    model = listwise_models.build_gguf(tmp_path / "model")
    async with Reranker(settings(model, tmp_path / "home", engine="torch", device="cpu")) as reranker:
        for what, request in REQUESTS.items():
            assert raw(await ask(reranker, **request)) == pytest.approx(GOLDENS[NAMES[0]][what], abs=1e-3)


def test_it_is_served_by_torch(serve: Callable[..., Program], tmp_path: Path) -> None:
    model = listwise_models.build(NAMES[0], tmp_path)
    url = serve(str(model), "--engine", "torch", RERANKD_HOME=str(tmp_path / "home")).url
    answer = post(f"{url}/v1/rerank", {"query": ONE["query"], "documents": ONE["documents"]})
    rows = sorted(answer.json()["results"], key=lambda row: row["index"])
    wanted = [(1 + one) / 2 for one in GOLDENS[NAMES[0]]["one block"]]
    assert [row["relevance_score"] for row in rows] == pytest.approx(wanted, abs=BOUND)
