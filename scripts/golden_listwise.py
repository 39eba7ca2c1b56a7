"""Makes tests/golden/listwise.json: the raw scores of listwise models by a reference implementation.

The models and requests are those of tests/listwise_models.py. Their class is code in jinaai/jina-reranker-v3
that can't be fetched here; this file computes what that code does, with Qwen3Model of transformers in
float32: one prompt for a block, tokenized as a whole, the projected states of the marker tokens, and the mean
query of several blocks.

    python scripts/golden_listwise.py            makes the file again
    python scripts/golden_listwise.py --check    compares the values with the file
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast, Qwen3Model

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))
import listwise_models  # noqa: E402

FILE = TESTS / "golden" / "listwise.json"
NEAR = 1e-4
EMBED, RERANK = listwise_models.MARKERS
BLOCK = 125
# The most tokens of a query and a document.
LIMITS = {"jina-reranker-v3": (512, 2048), "jina-reranker-v3.5": (1024, 8192)}
SYSTEM = (
    "You are a search relevance expert who can determine a ranking of the passages based on how relevant "
    "they are to the query. If the query is a question, how relevant a passage is depends on how well it "
    "answers the question. If not, try to analyze the intent of the query and assess how well each passage "
    "satisfies the intent. If an instruction is provided, you should follow the instruction when determining "
    "the ranking."
)


class Reference:
    """One model."""

    def __init__(self, name: str, folder: Path) -> None:
        model = listwise_models.build(name, folder)
        self.query_limit, self.document_limit = LIMITS[name]
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(model / "tokenizer.json"))
        self.body = Qwen3Model.from_pretrained(model, dtype=torch.float32).eval()
        held = load_file(model / "model.safetensors")
        self.matrices = [held["projector.0.weight"], held["projector.2.weight"]]

    def scores(self, query: str, documents: Sequence[str], instruction: str = "") -> list[float]:
        query = self._cut(query, self.query_limit)
        documents = [self._cut(one, self.document_limit) for one in documents]
        blocks = [documents[at : at + BLOCK] for at in range(0, len(documents), BLOCK)]
        found = [self._vectors(self.prompt(query, block, instruction)) for block in blocks]
        weights = [(1 + self._cosines(own, rows).max()) / 2 for rows, own in found]
        mean = np.average([own for _, own in found], axis=0, weights=weights)
        return [float(one) for rows, _ in found for one in self._cosines(mean, rows)]

    def prompt(self, query: str, documents: Sequence[str], instruction: str = "") -> list[int]:
        query, *documents = (one.replace(EMBED, "").replace(RERANK, "") for one in (query, *documents))
        text = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
        text += (
            f"I will provide you with {len(documents)} passages, each indicated by a numerical identifier. "
            f"Rank the passages based on their relevance to query: {query}\n"
        )
        text += f"<instruct>\n{instruction}\n</instruct>\n" if instruction else ""
        passages = [f'<passage id="{n}">\n{one}{EMBED}\n</passage>' for n, one in enumerate(documents)]
        text += "\n".join(passages) + f"\n<query>\n{query}{RERANK}\n</query>"
        text += "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        return self.tokenizer(text)["input_ids"]  # type: ignore[no-any-return]

    def _cut(self, text: str, limit: int) -> str:
        ids = self.tokenizer(text)["input_ids"]
        return text if len(ids) < limit else self.tokenizer.decode(ids[:limit])

    def _vectors(self, ids: list[int]) -> tuple[Any, Any]:
        """The vectors of the documents, and that of the query."""
        with torch.no_grad():
            states = self.body(torch.tensor([ids])).last_hidden_state[0]
            rows = torch.relu(states @ self.matrices[0].T) @ self.matrices[1].T
        markers = [torch.tensor(ids) == self.tokenizer.convert_tokens_to_ids(one) for one in (EMBED, RERANK)]
        documents, query = (rows[one].numpy() for one in markers)
        return documents, query[0]

    def _cosines(self, query: Any, rows: Any) -> Any:
        return rows @ query / (np.linalg.norm(query) * np.linalg.norm(rows, axis=1))


def values(name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        reference = Reference(name, Path(folder))
        asked = listwise_models.requests()
        one = asked["one block"]
        made: dict[str, Any] = {what: reference.scores(**request) for what, request in asked.items()}
        long = asked["longer than the window"]
        return made | {
            "ids": reference.prompt(one["query"], one["documents"]),
            "ids beyond the window": reference.prompt(long["query"], long["documents"]),
        }


def main() -> int:
    flags = argparse.ArgumentParser()
    flags.add_argument("--check", action="store_true")
    checks = flags.parse_args().check
    made = {name: values(name) for name in listwise_models.NAMES}
    if not checks:
        FILE.write_text(json.dumps(made) + "\n")
        return 0
    known = json.loads(FILE.read_text())
    gap = max(
        float(np.abs(np.array(known[name][what]) - row).max())
        for name, rows in made.items()
        for what, row in rows.items()
    )
    print(f"the largest difference is {gap:.2g}")
    return int(gap > NEAR)


if __name__ == "__main__":
    sys.exit(main())
