"""(pure) Divide the queries: for training, for choosing the best checkpoint, and for the final measurement.

Queries are divided, never pairs: a model that has seen a query with other documents has seen its judgements.
Queries with the same words are one query here. The division depends on the texts and the seed alone, so it
stays the same when the files are sorted differently.

How many are needed: 50 queries are the least with which two rankings can be compared (Buckley and Voorhees,
"Evaluating Evaluation Measure Stability", 2000), once for the checkpoints and once for the final measurement,
which must be other queries: a model that was chosen for its measure on some queries looks too good on these.
And 100 for training: with fewer, a tuned model can be worse than the base (Zhang, Yates, Lin, "A Little Bit
Is Worse Than None", 2020), and a run that would tell so little is not worth its time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rerankd.errors import CollectionError

LEAST_MEASURED = 50
LEAST_TRAINED = 100
_MOST_VALIDATED = 200
_MOST_HELD_OUT = 500


@dataclass(frozen=True, slots=True)
class Parts:
    """The ids of the queries of each part. `validation_is_judged`, `held_out_is_judged`: the judgements
    measure that part; otherwise the agreement with the teacher does."""

    training: tuple[str, ...]
    validation: tuple[str, ...]
    held_out: tuple[str, ...]
    validation_is_judged: bool
    held_out_is_judged: bool


def divide(judged: Mapping[str, str], unjudged: Mapping[str, str], *, has_teacher: bool, seed: int) -> Parts:
    """Divide queries, given by id and text. Without a teacher, only judged queries are of use.

    Judged queries measure first of all: all of them if there are few, else a fifth and a tenth of them.
    Raises CollectionError if there are too few.
    """
    if not has_teacher:
        unjudged = {}
    known = {_words(text) for text in judged.values()}
    rest = _groups({one: text for one, text in unjudged.items() if _words(text) not in known}, seed)
    groups = _groups(judged, seed)
    total = len(groups) + len(rest)
    least = 2 * LEAST_MEASURED + LEAST_TRAINED
    if total < least or (groups and len(groups) < LEAST_MEASURED):
        raise CollectionError(_too_few(len(groups), len(rest), least, has_teacher))
    held_is_judged, validation_is_judged = bool(groups), len(groups) >= 2 * LEAST_MEASURED
    source = groups or rest
    held_out = [source.pop() for _ in range(_share(len(source), 5, _MOST_HELD_OUT))]
    source = groups if validation_is_judged else rest
    if not validation_is_judged and len(rest) < LEAST_MEASURED + LEAST_TRAINED:
        raise CollectionError(_too_few(len(groups) + len(held_out), len(rest), least, has_teacher))
    validation = [source.pop() for _ in range(_share(len(source), 10, _MOST_VALIDATED))]
    return Parts(
        training=_flat(groups + rest),
        validation=_flat(validation),
        held_out=_flat(held_out),
        validation_is_judged=validation_is_judged,
        held_out_is_judged=held_is_judged,
    )


def _too_few(judged: int, unjudged: int, least: int, has_teacher: bool) -> str:
    found = f"{judged} different judged queries" + (f" and {unjudged} without judgements" * has_teacher)
    advice = (
        f"With a teacher, {LEAST_MEASURED} judged ones and {LEAST_MEASURED + LEAST_TRAINED} without "
        f"judgements are enough, or {least} without any judgement."
        if has_teacher
        else "With --teacher, most of them need no judgements."
    )
    return (
        f"The collection has too few queries to tune a model: {found}, but {least} are needed: "
        f"{LEAST_TRAINED} for training, {LEAST_MEASURED} for choosing the best checkpoint and "
        f"{LEAST_MEASURED} for measuring the result. {advice}"
    )


def _share(count: int, divisor: int, most: int) -> int:
    return min(max(count // divisor, LEAST_MEASURED), most)


def _groups(queries: Mapping[str, str], seed: int) -> list[tuple[str, ...]]:
    """The ids by equal words, in an order that depends on the words and the seed alone."""
    found: dict[str, list[str]] = {}
    for identifier, text in queries.items():
        if words := _words(text):
            found.setdefault(words, []).append(identifier)
    return [tuple(sorted(found[words])) for words in sorted(found, key=lambda words: _digest(words, seed))]


def _words(text: str) -> str:
    return " ".join(text.casefold().split())


def _digest(text: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed} {text}".encode(errors="surrogatepass"), digest_size=16).digest()


def _flat(groups: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(one for group in groups for one in group)
