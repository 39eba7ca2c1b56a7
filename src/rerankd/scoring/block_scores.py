"""(pure) The scores of a listwise model, from the vectors of its blocks.

One block: the cosine of a document's vector and the query's. The query has a vector in each block. For
several blocks, all documents are compared with the mean of these, weighted by (1 + c) / 2, where c is the
best cosine in the block.

Source: `rerank` in modeling.py of jinaai/jina-reranker-v3, which computes with numpy in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
_LEAST = 1e-12


class Block(NamedTuple):
    """The vectors of a block: of its documents [documents, width], and of the query [width]."""

    documents: Vectors
    query: Vectors


def cosines(block: Block) -> list[float]:
    """The cosine of each document's vector and the query's."""
    documents, query = (np.asarray(one, np.float64) for one in block)
    lengths = np.linalg.norm(documents, axis=1) * np.linalg.norm(query)
    found: list[float] = ((documents @ query) / np.maximum(lengths, _LEAST)).tolist()
    return found


def merged(blocks: Sequence[Block]) -> list[list[float]]:
    """The raw scores of the documents of each block."""
    if len(blocks) == 1:
        return [cosines(blocks[0])]
    weights = np.maximum([(1 + max(cosines(block))) / 2 for block in blocks], _LEAST)
    query = np.average([block.query.astype(np.float64) for block in blocks], axis=0, weights=weights)
    return [cosines(block._replace(query=query)) for block in blocks]
