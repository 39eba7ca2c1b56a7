"""From what a user names to a model that can be served: find the file, read its header, decide how it is
scored."""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from rerankd import machine
from rerankd.backends import select
from rerankd.backends.llama import installed
from rerankd.backends.llama.binaries import Choice
from rerankd.backends.llama.heads import needed_build
from rerankd.backends.llama.options import LlamaOptions
from rerankd.backends.openvino.options import OpenVinoOptions
from rerankd.backends.worker.client import WORKER
from rerankd.config import EffectiveModelSettings, ScoringSettings, Settings
from rerankd.domain import Recipe
from rerankd.errors import DataFolderError, ModelFileError, UnknownModel
from rerankd.formats import checkpoint_files, modelfile
from rerankd.formats.metadata import ModelMetadata
from rerankd.hub import store
from rerankd.progress import Progress, silent
from rerankd.recipes import catalog, resolve

_HEADER_BYTES = 64 * 2**10


@dataclass(frozen=True, slots=True)
class Model:
    """A model that can be served: its names, its file or folder, how it is scored, and the engine that runs
    it. `fingerprint` tells the file from another one at a glance (see scoring/cache.py). `changed_at` is when
    the file was last written, in seconds since 1970. `other_engine` can run the same file."""

    name: str
    aliases: tuple[str, ...]
    path: Path
    facts: ModelMetadata
    verdict: resolve.Verdict
    scoring: Recipe
    wanted: EffectiveModelSettings
    fingerprint: str
    engine: Choice
    changed_at: int = 0
    other_engine: Choice | None = None

    @property
    def exact(self) -> bool:
        """Whether its weights are not quantised."""
        return self.facts.quantisation in ("F32", "F16", "BF16")

    @property
    def memory_guess(self) -> int:
        """Bytes that its engines may take, for as long as that has not been measured.

        llama.cpp maps the file. OpenVINO's worker also holds the matrices of the blocks: measured on
        BERT-large's shape, 8 bytes a weight, or 2.6 when they are compressed.
        """
        per_engine = self.facts.size_bytes
        if self.engine.kind == "openvino":
            per_engine += self.facts.block_weights * (
                3 if self.wanted.options(OpenVinoOptions).weights == "compressed" else 8
            )
        return per_engine * self.wanted.replicas

    @property
    def names(self) -> tuple[str, ...]:
        """All names it answers to, the shown one first."""
        return (self.name, *self.aliases)


def wanted(settings: Settings) -> tuple[EffectiveModelSettings, ...]:
    """The models that are to be served, by the settings and what is on this disk."""
    return settings.wanted(store.Store(settings.home).default())


def prepare(
    settings: Settings,
    model: EffectiveModelSettings | None = None,
    progress: Progress = silent,
) -> Model:
    """Find a model, fetch it if it is the built-in one, and decide how it is scored. None is the first one
    that the settings want.

    Blocks while it reads and fetches. Raises the errors of the data folder, the model file and the download,
    Unscorable where no right score can come of it, and ConfigError where the engine that is wanted can't run
    it.
    """
    model = model or wanted(settings)[0]
    folders = store.Store(settings.home)
    # A model that is there is served from a read-only folder, too. Who has to write says why that fails.
    with contextlib.suppress(DataFolderError):
        folders.check_writable()
    path = folders.locate(model.ref, progress, settings.builtin_wheel)
    made = fingerprint(path)
    facts = modelfile.read(path)
    decided = judge_file(facts, model.scoring)
    scoring = decided.require(model.ref)
    memory = machine.read().memory_bytes
    options = model.options(LlamaOptions)
    its_own = settings.model_copy(update={"gpu_layers": options.gpu_layers})
    named = options.llama_path or options.engine_args or installed.Engines(settings.home).used()
    candidate = openvino_candidate(facts, scoring, named=bool(named))
    build = max(needed_build(facts), decided.entry.needs_build if decided.entry is not None else 0)
    llama = partial(installed.chosen, its_own, needs=build)
    engine = select.choose(model.engine, candidate, WORKER, llama)
    if memory is not None and facts.size_bytes > memory and engine.on_cpu:
        raise ModelFileError(
            f"{path.name} has {facts.size_bytes / 2**30:.1f} GiB, more than the {memory / 2**30:.1f} GiB of "
            "memory this machine has. Take a smaller quantisation or a smaller model."
        )
    names = names_of(model)
    return Model(
        names[0],
        names[1:],
        path,
        facts,
        decided,
        scoring,
        model,
        made,
        engine,
        changed_at=_changed_at(path),
        other_engine=select.other(model.engine, candidate, engine, WORKER, llama),
    )


def names_of(model: EffectiveModelSettings) -> tuple[str, ...]:
    """All names it will answer to, the shown one first, whether or not there is a file."""
    try:
        return model.names or (store.display_name(model.ref),)
    except UnknownModel:  # what it is called by names nothing: it will be refused, under these words
        return (model.ref,)


def _changed_at(path: Path) -> int:
    try:
        return int(path.stat().st_mtime)
    except OSError:  # it went just now; `fingerprint` notices
        return 0


def openvino_candidate(facts: ModelMetadata, scoring: Recipe, *, named: bool = False) -> select.Candidate:
    """What tells whether OpenVINO's worker can run a model; `named` says that the user chose a llama.cpp."""
    return select.Candidate(
        scoring,
        facts.architecture,
        (facts.tokenizer_model, facts.tokenizer_pre),
        format=facts.format,
        parts=len(facts.parts),
        activation=facts.hidden_activation,
        has_charsmap=facts.has_charsmap,
        named=named,
        has_wheel=all(find_spec(name) is not None for name in ("openvino", "tokenizers")),
    )


def judge_file(facts: ModelMetadata, scoring: ScoringSettings) -> resolve.Verdict:
    """How a file is scored, by its facts, the catalog and the settings."""
    return resolve.decide(facts, catalog.known(), resolve.ScoringOverrides(**scoring.model_dump()))


def judge_model(settings: Settings, facts: ModelMetadata, model: str) -> resolve.Verdict:
    """How a file is scored with what is set for the model that the user calls so."""
    return judge_file(facts, settings.of(model).scoring)


def fingerprint(path: Path) -> str:
    """What tells a model's file from another one at a glance, or a folder's; of no file, that there is
    none."""
    if path.is_dir():
        return (
            " ".join(fingerprint(path / name) for name in checkpoint_files.files(os.listdir(path)))
            or f"no {path}"
        )
    try:
        status = path.stat()
        with path.open("rb") as stream:
            header = hashlib.blake2b(stream.read(_HEADER_BYTES), digest_size=16).hexdigest()
    except OSError:
        return f"no {path}"
    return f"{path} {status.st_size} {status.st_mtime_ns} {header}"
