"""SentencePiece's BPE with the `tokenizers` library, from a vocabulary whose scores order the merges."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import models


def model(pieces: Sequence[str], scores: Sequence[float | None], unknown: str) -> models.BPE:
    """The model of a vocabulary. Pieces without a score, such as control tokens, result from no merge. A
    character without a piece becomes the pieces of its bytes, or `unknown`.

    SentencePiece merges the two neighbours whose joined piece has the highest score. So each way to split a
    piece into two others is a merge, in the order of the scores, as in transformers' SentencePieceExtractor.
    """
    vocabulary = {piece: at for at, piece in enumerate(pieces)}
    found = [
        (-score, left, right)
        for piece, score in zip(pieces, scores, strict=True)
        if score is not None
        for place in range(1, len(piece))
        if (left := vocabulary.get(piece[:place])) is not None
        and (right := vocabulary.get(piece[place:])) is not None
    ]
    merges = [(pieces[left], pieces[right]) for _, left, right in sorted(found)]
    return models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
