"""(pure) Select which backend runs a model, and explain why the others do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rerankd.backends.base import Backend, Offer, Rank
from rerankd.backends.options import NO_INT8
from rerankd.backends.safer_steps import OTHER_BACKEND, Step
from rerankd.domain import Refusal
from rerankd.errors import ConfigError

AUTO = "auto"
Answers = Sequence[tuple[Backend, Offer | Refusal]]
# The share of the machine's memory that an engine may take only if no other one takes less.
_MOST_OF_MEMORY = 0.5


@dataclass(frozen=True, slots=True)
class Selection:
    """The selected offer, the fallback if its engine crashes (None if no other backend can run the model),
    and the refusals of the other backends by title."""

    offer: Offer
    fallback: Offer | None
    refusals: Mapping[str, Refusal]

    @property
    def last_steps(self) -> tuple[Step, ...]:
        """The safer step to the fallback, if there is one. It saves memory, or that of the GPU."""
        other = self.fallback
        if other is None:
            return ()
        leaves_gpu = other.on_cpu and not self.offer.on_cpu
        saves = leaves_gpu or other.memory_bytes < self.offer.memory_bytes
        return (replace(OTHER_BACKEND, saves_memory=saves),)


def choose(wanted: str, answers: Sequence[tuple[Backend, Offer | Refusal]]) -> Selection:
    """Select the offer of the backend named `wanted`, or with "auto" the first one with the highest rank.

    Raises ConfigError if no backend can run the model, or the wanted one can't.
    """
    offers = [one for _, one in answers if isinstance(one, Offer)]
    refusals = {backend.title: one for backend, one in answers if isinstance(one, Refusal)}
    if wanted != AUTO:
        named = next(one for backend, one in answers if backend.name == wanted)
        if isinstance(named, Refusal):
            raise ConfigError(
                f"engine = {wanted} can't run this model: {named.reason}. Leave it at {AUTO}"
                + (f", or {named.next_step}." if named.next_step else ".")
            )
        reason = "; ".join(filter(None, ("it is set as engine", named.shortfall, named.reason)))
        return Selection(replace(named, reason=reason), None, refusals)
    if not offers:
        # That the others do not compute in int8 is no news to a user who set it.
        told = {title: one for title, one in refusals.items() if one is not NO_INT8} or refusals
        raise ConfigError(" ".join(_sentence(title, refusal) for title, refusal in told.items()))
    best, *others = sorted(offers, key=lambda offer: (-offer.rank, -offer.prompt_rate))
    clauses = [_clause(refusal) for refusal in refusals.values() if not refusal.is_minor]
    clauses += [offer.shortfall for offer in offers if offer.shortfall]
    reason = "; ".join([*clauses, best.reason])
    fallback = None
    # The copy that a patch needs is made only for the selected engine.
    others = [one for one in others if one.patch is None]
    if others and best.rank != Rank.NAMED:
        fallback = replace(others[0], reason=f"{best.backend.title} can't run it here")
    return Selection(replace(best, reason=reason), fallback, refusals)


def modest(answers: Answers, memory_bytes: int | None) -> list[tuple[Backend, Offer | Refusal]]:
    """Lower the rank of each offer that would take more than half of this machine's memory, if another one
    takes less: a faster engine is not worth a machine that runs out of memory."""
    sizes = [one.memory_bytes for _, one in answers if isinstance(one, Offer) and one.rank == Rank.CPU]
    most = (memory_bytes or 0) * _MOST_OF_MEMORY
    if not most or min(sizes, default=0) >= max(sizes, default=0):
        return [*answers]

    def lowered(offer: Offer | Refusal) -> Offer | Refusal:
        if isinstance(offer, Refusal) or offer.rank != Rank.CPU or offer.memory_bytes <= most:
            return offer
        takes = f"it would take about {offer.memory_bytes / 2**30:.1f} GiB of memory"
        return replace(offer, rank=Rank.LAST_ON_CPU, reason=f"{offer.reason}, but {takes}")

    return [(backend, lowered(one)) for backend, one in answers]


def rivals(wanted: str, answers: Answers) -> list[Offer]:
    """Return the offers among which a measured speed decides: two or more that have no other difference in
    rank. Empty if there is nothing to decide."""
    offers = [one for _, one in answers if isinstance(one, Offer)]
    best = max((one.rank for one in offers), default=None)
    found = [one for one in offers if one.rank == best == Rank.CPU]
    return found if wanted == AUTO and len(found) > 1 else []


def rated(offer: Offer, rate: float) -> Offer:
    """Return the offer with its measured speed (see Backend.prompt_rate), and that as a reason."""
    measured = (
        f"measured here: {rate:.0f} GFLOP/s for one thread in prompts" if rate else "not measured here yet"
    )
    return replace(offer, prompt_rate=rate, reason=f"{offer.reason}; {measured}")


def describe(wanted: str, answers: Sequence[tuple[Backend, Offer | Refusal]]) -> list[dict[str, Any]]:
    """Return one row per backend for `rerankd inspect`: whether it can run a model, and why."""
    offer = used(wanted, answers)
    return [
        {
            "name": backend.name,
            "title": one.title if isinstance(one, Offer) else backend.title,
            "used": offer is not None and backend is offer.backend,
            "refuses": isinstance(one, Refusal),
            "reason": "; ".join(filter(None, (one.shortfall, one.reason)))
            if isinstance(one, Offer)
            else one.reason,
            "next_step": one.next_step if isinstance(one, Refusal) else "",
        }
        for backend, one in answers
    ]


def used(wanted: str, answers: Sequence[tuple[Backend, Offer | Refusal]]) -> Offer | None:
    """Return the offer that `choose` selects, None if no backend can run the model."""
    try:
        return choose(wanted, answers).offer
    except ConfigError:
        return None


def line(row: Mapping[str, Any]) -> str:
    """Render a row of `describe` as a line of text."""
    word = "refuses" if row["refuses"] else "runs it" if row["used"] else "can run it"
    return f"engine {row['title']} {word}: " + "; ".join(filter(None, (row["reason"], row["next_step"])))


def _clause(refusal: Refusal) -> str:
    return refusal.reason + (f" ({refusal.next_step})" if refusal.next_step else "")


def _sentence(title: str, refusal: Refusal) -> str:
    step = f" {refusal.next_step[:1].upper()}{refusal.next_step[1:]}." if refusal.next_step else ""
    return f"{title} can't run this model: {refusal.reason}.{step}"
