"""What every backend says of a model on this machine."""

from __future__ import annotations

from pathlib import Path

from rerankd import machine
from rerankd.backends.base import Backend, EngineSpec, Offer, Shape
from rerankd.backends.table import BACKENDS
from rerankd.config import EffectiveModelSettings, Settings
from rerankd.domain import Refusal
from rerankd.formats.metadata import ModelMetadata
from rerankd.machine import Gpu
from rerankd.recipes.resolution import Resolution


def spec(
    name: str,
    path: Path,
    metadata: ModelMetadata,
    resolved: Resolution,
    wanted: EffectiveModelSettings,
    fingerprint: str,
) -> EngineSpec:
    """All that a backend must know of a model. Raises Unscorable where it has no recipe."""
    return EngineSpec(
        name,
        path,
        resolved.require(wanted.ref),
        metadata.control_tokens,
        exact=metadata.quantisation in ("F32", "F16", "BF16"),
        shape=Shape(
            metadata.tensor_bytes, metadata.block_count, metadata.embedding_length, metadata.kv_width
        ),
        metadata=metadata,
        fingerprint=fingerprint,
        needs_build=resolved.entry.needs_build if resolved.entry is not None else 0,
        threads=wanted.threads or max(machine.read().cores // wanted.replicas, 1),
        replicas=wanted.replicas,
    )


def all_offers(
    spec: EngineSpec, wanted: EffectiveModelSettings, home: Path
) -> list[tuple[Backend, Offer | Refusal]]:
    """What each backend says of a model with these settings. Looks at the machine; takes up to a second."""
    said = []
    for backend in BACKENDS:
        options = wanted.options(backend.Options)
        said.append((backend, backend.offer(spec, options, backend.survey(options, home, spec))))
    return said


def usable_cards(settings: Settings) -> tuple[Gpu, ...] | None:
    """The cards that engines can use; None where they may use some and nothing is known of them."""
    found: tuple[Gpu, ...] = ()
    for backend in BACKENDS:
        options = settings.options(backend.Options)
        usable = backend.cards(backend.survey(options, settings.home), options)
        if usable is None:
            return None
        found = found or usable
    return found
