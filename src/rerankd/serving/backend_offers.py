"""Ask every backend whether, and how, it can run a model on this machine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from rerankd import machine
from rerankd.backends import select
from rerankd.backends.base import Backend, EngineSpec, Offer, Shape
from rerankd.backends.options import trait
from rerankd.backends.table import BACKENDS
from rerankd.config import EffectiveModelSettings, Settings
from rerankd.domain import Refusal
from rerankd.formats.metadata import ModelMetadata
from rerankd.machine import Gpu
from rerankd.recipes.recommend import Wish
from rerankd.recipes.resolution import Resolution
from rerankd.state import StateStore

OPTIONS = {name: field for backend in BACKENDS for name, field in backend.Options.model_fields.items()}
"""The settings of all backends."""


def spec(
    name: str,
    path: Path,
    metadata: ModelMetadata,
    resolved: Resolution,
    wanted: EffectiveModelSettings,
    fingerprint: str,
) -> EngineSpec:
    """Everything that a backend needs to know about a model. Raises Unscorable if the model has no recipe."""
    recipe = resolved.require(wanted.ref)
    of_interaction = recipe.interaction
    markers = (of_interaction.query_marker, of_interaction.document_marker) if of_interaction else ()
    found = metadata.ids_of((*markers, *recipe.markers))
    return EngineSpec(
        name,
        path,
        recipe,
        {**metadata.control_tokens, **found},
        exact=metadata.quantisation in ("F32", "F16", "BF16"),
        shape=Shape(
            metadata.tensor_bytes, metadata.block_count, metadata.embedding_length, metadata.kv_width
        ),
        metadata=metadata,
        fingerprint=fingerprint,
        needs_build=resolved.entry.needs_build if resolved.entry is not None else 0,
        threads=wanted.threads or max(machine.read().cores // wanted.replicas, 1),
        replicas=wanted.replicas,
        document_vectors_bytes=wanted.document_vectors_mb * 2**20 if of_interaction else 0,
    )


def all_offers(
    spec: EngineSpec, wanted: EffectiveModelSettings, home: Path, *, measure: bool = False
) -> list[tuple[Backend, Offer | Refusal]]:
    """The offer or refusal of each backend for a model with these settings. Inspects the machine, which takes
    up to a second. With `measure`, speeds that decide which backend is used are measured, once on each
    machine, which takes some seconds."""
    answers: list[tuple[Backend, Offer | Refusal]] = []
    for backend in BACKENDS:
        options = wanted.options(backend.Options)
        answer = backend.offer(spec, options, backend.survey(options, home, spec))
        answers.append((backend, with_unused(answer, wanted) if isinstance(answer, Offer) else answer))
    answers = select.modest(answers, machine.read().memory_bytes)
    if not (rivals := select.rivals(wanted.engine, answers)):
        return answers
    learned = StateStore(home)
    # With one thread each, they are measured at the same time if each has a core.
    with ThreadPoolExecutor(len(rivals) if machine.read().cores >= len(rivals) else 1) as pool:
        rates = list(pool.map(lambda one: one.backend.prompt_rate(one, learned, measure=measure), rivals))
    known = {id(one): select.rated(one, rate) for one, rate in zip(rivals, rates, strict=True)}
    return [(backend, known.get(id(one), one)) for backend, one in answers]


def with_unused(offer: Offer, wanted: EffectiveModelSettings) -> Offer:
    """The offer with the names of all settings of engines that the user has changed and that have no effect
    in it, also in its reason."""
    unused = []
    for name, field in OPTIONS.items():
        value, is_own = getattr(wanted, name), name in offer.backend.Options.model_fields
        has_no_effect = name in offer.unused if is_own else not trait(field, "is_permission")
        is_met = offer.on_cpu and value == trait(field, "on_cpu")
        if value != field.default and has_no_effect and not is_met:
            unused.append(name)
    offer = replace(offer, unused=frozenset(unused))
    return replace(offer, reason=f"{offer.reason}; {unused_words(offer)}") if unused else offer


def unused_words(offer: Offer) -> str:
    """A clause about the settings that have no effect, "" if there are none."""
    names = sorted(offer.unused)
    return f"{' and '.join(names)} {'has' if len(names) == 1 else 'have'} no effect" if names else ""


def usable_cards(settings: Settings) -> tuple[Gpu, ...] | None:
    """The GPUs that engines can use; None if engines may use GPUs that rerankd can't measure."""
    found: tuple[Gpu, ...] = ()
    for backend in BACKENDS:
        options = settings.options(backend.Options)
        usable = backend.cards(backend.survey(options, settings.home), options)
        if usable is None:
            return None
        found = found or usable
    return found


def wish_of(settings: Settings, language: str = "", *, commercial: bool = False) -> tuple[Wish, bool]:
    """This machine and the user's conditions, to recommend models for. Also returns whether engines may use a
    GPU whose memory rerankd can't measure. Inspects the machine, which takes up to a second."""
    this, cards = machine.read(), usable_cards(settings)
    # A GPU with 0 bytes shares the main memory.
    gpu_bytes = max((card.total_bytes or this.memory_bytes or 0 for card in cards or ()), default=0)
    return Wish(this.memory_bytes, this.cores, gpu_bytes, language, commercial), cards is None
