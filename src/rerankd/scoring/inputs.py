"""A request -> what goes to the engine: cleaned texts, cut to what the window leaves them.

All that needs an engine is how it counts tokens, handed in as a function.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial

from rerankd.domain import Recipe, RerankRequest
from rerankd.errors import TooLong
from rerankd.scoring import plan, truncate
from rerankd.scoring.prompt import INSTRUCTION

# A window leaves a document at least so many tokens, or the query is too long for it.
_LEAST_ROOM = 8
# Texts that are counted in one call: the engine tokenises them one after the other, and nobody else's.
_COUNTED_CHARACTERS = 2**20

Count = Callable[[Sequence[str]], Awaitable[list[int]]]
"""How many tokens each text has."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """What goes to the engine for a request, the documents that were cut, and the tokens each has room for.
    Blank documents (see plan.is_blank) don't go there.

    `unused_instruction` says that one was sent which the model has no place for, `query_cut` to how many
    tokens the query was cut, `overlap` how many tokens chunks share where more were asked for.
    """

    query: str
    instruction: str
    plan: plan.Plan
    cut: tuple[int, ...]
    room: int
    unused_instruction: bool = False
    query_cut: int | None = None
    overlap: int | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the caller should know of it, in words."""
        found = []
        if self.unused_instruction:
            found.append("This model takes no instruction: the one sent was not used.")
        if self.query_cut:
            found.append(f"The query was cut to {self.query_cut} tokens, as max_tokens_per_query asks.")
        if self.overlap is not None:
            found.append(
                f"Chunks share {self.overlap} tokens, half of what there is room for, and not the "
                "overlap_tokens of the request."
            )
        if self.cut:
            found.append(
                f"Too long to be read whole, with {self.room} tokens for a text: {plan.named(self.cut)}."
            )
        if self.plan.blank:
            found.append(f"Blank, ranked last: {plan.named(self.plan.blank)}.")
        return tuple(found)


async def fit(
    request: RerankRequest, scoring: Recipe, fixed_tokens: int, count: Count, *, exact: bool = False
) -> Fitted:
    """Cut the documents to what the window leaves them; `exact` counts each that may be too long.

    Raises TooLong for a query that leaves no room, and for a document that must not be cut.
    """
    clean = partial(plan.clean, nfc=scoring.nfc)
    query, query_cut = await _query(clean(request.query), request.max_tokens_per_query, count)
    takes_instruction = scoring.method == "causal_lm" and INSTRUCTION in scoring.template
    instruction = clean(request.instruction or scoring.instruction) if takes_instruction else ""
    documents = [clean(document) for document in request.documents]
    limit = request.max_tokens_per_doc or None
    # A bound that the caller named is kept to the token.
    fits = truncate.surely_fits if exact or limit else truncate.likely_fits
    window_tokens = min(scoring.max_length, request.max_tokens_per_pair or scoring.max_length)
    space = window_tokens - fixed_tokens
    room = _room(scoring, truncate.most_tokens(query + instruction), space)
    if room < _LEAST_ROOM or not all(fits(text, room) for text in documents):
        used = sum(await count([query, instruction]))
        room = _room(scoring, used, space)
        if used > space or room < _LEAST_ROOM:
            raise TooLong(
                f"The query has {used} tokens (with the instruction, if any), too many for a window of "
                f"{window_tokens}: a query is only cut where max_tokens_per_query asks for it. Shorten it."
            )
    bound = min(room, limit or room)
    made = [truncate.Chunks((text,), cut=False) for text in documents]
    long = [at for at, text in enumerate(documents) if not fits(text, bound) and not plan.is_blank(text)]
    if long:
        most = 1 if not request.truncate else max(request.max_chunks_per_doc, 1)
        cutters = [truncate.chunks(documents[at], room, most, request.overlap_tokens, limit) for at in long]
        for at, chunks in zip(long, await _drive(cutters, count), strict=True):
            made[at] = chunks
    cut = tuple(at for at, chunks in enumerate(made) if chunks.cut)
    if cut and not request.truncate:
        (tokens,) = await count([documents[cut[0]]])
        raise TooLong(
            f"Document {cut[0]} has {tokens} tokens and there is room for {bound} beside the query. "
            "Shorten it, or leave out truncate: false to have it cut."
        )
    unused_instruction = bool(request.instruction) and not takes_instruction
    is_chunked = any(len(chunks.texts) > 1 for chunks in made)
    most_overlap = truncate.most_overlap(room)
    overlap = most_overlap if is_chunked and request.overlap_tokens > most_overlap else None
    return Fitted(query, instruction, plan.make(made), cut, bound, unused_instruction, query_cut, overlap)


async def _query(query: str, limit: int | None, count: Count) -> tuple[str, int | None]:
    """The query, cut to `limit` tokens where it has more; and the limit, if it was. Raises TooLong where
    nothing would be left."""
    if not limit or truncate.surely_fits(query, limit):
        return query, None
    (found,) = await _drive([truncate.chunks(query, limit)], count)
    if plan.is_blank(found.texts[0]):
        raise TooLong(f"max_tokens_per_query = {limit} leaves nothing of the query. Raise it.")
    return found.texts[0], limit if found.cut else None


def _room(scoring: Recipe, used: int, space: int) -> int:
    """Tokens that a document may have beside a query of `used` tokens."""
    # An embedding model reads the query and each document apart.
    return space if scoring.method == "embedding" and used <= space else space - used


async def _drive(
    cutters: Sequence[Generator[str, int, truncate.Chunks]], count: Count
) -> list[truncate.Chunks]:
    """Run the cutters side by side: what they ask for at one time is counted in few calls."""
    done: dict[int, truncate.Chunks] = {}
    asking = {at: next(cutter) for at, cutter in enumerate(cutters)}
    while asking:
        texts, counts = list(asking.values()), list[int]()
        for part in plan.micro_batches(texts, len(texts), _COUNTED_CHARACTERS):
            counts += await count(texts[part.start : part.stop])
        following: dict[int, str] = {}
        for at, tokens in zip(asking, counts, strict=True):
            try:
                following[at] = cutters[at].send(tokens)
            except StopIteration as end:
                done[at] = end.value
        asking = following
    return [done[at] for at in range(len(cutters))]
