"""The table of families in docs/models.md: a kind of file that the tests resolve represents each family."""

from __future__ import annotations

import re

from family_table import FAMILIES, table
from kinds import KINDS


def test_each_family_has_a_kind_and_each_kind_at_most_one_family() -> None:
    found = {
        kind.what: [name for name, one in FAMILIES.items() if re.fullmatch(one, kind.what)] for kind in KINDS
    }
    assert not {what: names for what, names in found.items() if len(names) > 1}
    named = {name for names in found.values() for name in names}
    assert FAMILIES.keys() - named <= {"ELECTRA, DistilBERT, CamemBERT"}


def test_the_table_states_who_serves_what_or_why_not() -> None:
    rows = {tuple(row.strip("| ").split(" | ")[:6]) for row in table().splitlines()}
    assert ("Qwen3-Reranker", "GGUF", "served", "served", "served", "served") in rows
    assert ("Qwen3-Reranker", "safetensors", "served", "served", "served", "-") in rows
    assert ("ettin-reranker", "safetensors", "served", "-", "served", "-") in rows
    assert ("mxbai-rerank-v1 (DeBERTa)", "safetensors", "served", "-", "served", "-") in rows
    assert ("bge-reranker and other XLM-R", "GGUF", "served", "served", "served", "served") in rows
    for line in table().splitlines()[2:]:
        family, _, *cells, why = line.removeprefix("| ").removesuffix(" |").split(" | ", 6)
        assert ({*cells} == {"served"}) == (not why.strip()), family
