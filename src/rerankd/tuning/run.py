"""The whole way of a tuning: check, plan, label, train, measure, write."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rerankd import evaluation, files, locks, tuning
from rerankd.config import Settings
from rerankd.errors import ConfigError, OutputFailed
from rerankd.evaluation.collection import Faults, Ranking
from rerankd.formats import model_files
from rerankd.hub import store
from rerankd.progress import Progress, step
from rerankd.serving.prepare_model import fingerprint, resolve_file
from rerankd.tuning import base_model, job, messages, plan, report, serving, training
from rerankd.tuning.job import Job, WorkFolder
from rerankd.tuning.labels import Labels, label
from rerankd.tuning.plan import Label, Plan
from rerankd.tuning.report import Report
from rerankd.tuning.training import Message

REPORT = "rerankd_tuning.json"
"""The report in the output folder."""
_MOST_TOKENS = 512
_SEED = 1


class Stopped(Exception):
    """The user stopped the training; the message says how to go on."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user wants; `max_length` is None for the default. See cli/tune.py for the meaning of each."""

    collection: Path
    base: str
    output: Path
    teacher: str | None
    split: str
    candidates: int
    epochs: int
    batch_size: int
    max_length: int | None
    learning_rate: float
    patience: int
    resume: bool


class View(Protocol):
    """Where progress and messages go."""

    def progress(self) -> AbstractContextManager[Progress]: ...

    def training(self) -> AbstractContextManager[Callable[[Message], None]]: ...

    def say(self, text: str) -> None: ...


@dataclass(frozen=True, slots=True)
class _Base:
    """The base model: its folder, the most tokens that it reads, and whether it gets a new head."""

    path: Path
    max_length: int
    is_headless: bool


def tune(settings: Settings, wanted: Wanted, faults: Faults, view: View) -> Report:
    """Tune a model and return the report. What is quick to check is checked first.

    Raises ConfigError, CollectionError, MissingExtra, TuningFailed, Stopped, Unscorable for a model that
    can't be tuned, and the errors of the models' files and engines.
    """
    work = _work_folder(wanted)
    with view.progress() as progress:
        base = _find_models(settings, wanted, progress)
        evaluation.check_installed()
        has_teacher, depth = wanted.teacher is not None, wanted.candidates
        planned = plan.read(
            wanted.collection, wanted.split, faults,
            has_teacher=has_teacher, depth=depth, seed=_SEED, progress=progress,
        )  # fmt: skip
    tuning.check_trainer()
    with _held(work):
        return _Tuning(settings, wanted, base, planned, work, view).run()


def _work_folder(wanted: Wanted) -> WorkFolder:
    """The work folder of the output, which must not exist. Raises ConfigError."""
    output = wanted.output
    if output.exists():
        raise ConfigError(f"--output: {output} exists already. Name a new folder.")
    if not output.absolute().parent.is_dir():
        raise ConfigError(f"--output: the folder {output.absolute().parent} does not exist.")
    work = WorkFolder.beside(output)
    if work.exists and not wanted.resume:
        raise ConfigError(
            f"{work.path} has an unfinished tuning. Repeat the command with --resume to go on with it, or "
            "delete that folder."
        )
    return work


def _find_models(settings: Settings, wanted: Wanted, progress: Progress) -> _Base:
    """Find and check the base model and the teacher. Raises Unscorable, ConfigError, and what `Store.locate`
    and `model_files.read` raise."""
    folders = store.Store(settings.home)

    def locate(model: str) -> Path:
        return folders.locate(settings.of(model).ref, progress, settings.builtin_wheel).resolve()

    path = locate(wanted.base)
    metadata = model_files.read(path)
    resolved = resolve_file(metadata, settings.of(wanted.base).scoring)
    if refusal := base_model.refusal(metadata, resolved):
        raise refusal.error(f"{wanted.base} can't be tuned")
    recipe = resolved.recipe
    longest = metadata.context_length if recipe is None else recipe.max_length
    if longest and wanted.max_length is not None and wanted.max_length > longest:
        raise ConfigError(f"--max-length: {wanted.base} reads at most {longest} tokens.")
    if wanted.teacher is not None:
        of_teacher = locate(wanted.teacher)
        if of_teacher == path:
            raise ConfigError("--teacher is the same model as --base, which can learn nothing from itself.")
        resolve_file(model_files.read(of_teacher), settings.of(wanted.teacher).scoring).require(
            wanted.teacher
        )
    max_length = wanted.max_length or min(longest or _MOST_TOKENS, _MOST_TOKENS)
    return _Base(path, max_length, is_headless=recipe is None)


@contextlib.contextmanager
def _held(work: WorkFolder) -> Iterator[None]:
    """Hold the work folder, and remove it unless it has a job to resume."""
    work.path.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locks.held(work.path / ".lock"))
        except BlockingIOError:
            raise ConfigError(f"Another rerankd tune works in {work.path}.") from None
        try:
            yield
        finally:
            if not work.exists:
                shutil.rmtree(work.path, ignore_errors=True)


class _Tuning:
    """A tuning whose parts were checked."""

    def __init__(
        self, settings: Settings, wanted: Wanted, base: _Base, planned: Plan, work: WorkFolder, view: View
    ) -> None:
        self._settings = settings
        self._wanted = wanted
        self._base = base
        self._plan = planned
        self._work = work
        self._view = view

    def run(self) -> Report:
        with self._view.progress() as progress, step(progress, "loading the base model into the trainer"):
            loaded = training.probe(self._base.path, self._base.max_length, self._work.log)
        if not self._work.exists:
            training.check_disk(self._wanted.output.absolute(), loaded["parameters"])
        self._say(loaded)
        labels = None
        if self._wanted.teacher is not None:
            try:
                with self._view.progress() as progress:
                    labels = asyncio.run(self._label(self._wanted.teacher, progress))
            except KeyboardInterrupt:
                self._view.say("The teacher's scores so far are kept. Repeat the command to go on.")
                raise
        found = None if labels is None else labels.get
        examples = self._plan.examples(found)
        self._begin(examples, found)
        done = self._trained()
        result = asyncio.run(self._measured(done, labels, len(examples)))
        self._write(result)
        return result

    def _say(self, loaded: Message) -> None:
        parts, millions = self._plan.parts, loaded["parameters"] / 1e6
        self._view.say(
            f"{self._wanted.base}: {millions:.3g} million parameters, trained on {loaded['device']}"
            + (", with a new head, since it has none" if self._base.is_headless else "")
        )
        self._view.say(
            f"{len(parts.training)} queries for training, {len(parts.validation)} for choosing the best "
            f"checkpoint, {len(parts.held_out)} held out"
        )

    async def _label(self, teacher: str, progress: Progress) -> Labels:
        """The teacher's labels for all pairs; its engine starts only if one is missing."""
        prepared = await serving.find(self._settings, teacher, progress)
        pairs = self._plan.to_label()
        with Labels.of(prepared, self._settings.home) as labels:
            if any(labels.missing(query, documents) for query, documents in pairs.items()):
                async with serving.served(self._settings, prepared, progress) as reranker:
                    await label(labels, reranker, pairs, progress)
        return labels

    def _begin(self, examples: list[dict[str, object]], found: Label | None) -> None:
        """Write the job, or check that the one to resume is the same."""
        data = job.lines(examples), job.lines(self._plan.validation(found))
        wanted = self._wanted
        made = Job(
            base=str(self._base.path),
            base_fingerprint=fingerprint(self._base.path),
            data=job.digest(data),
            loss="bce" if found is None else "mse",
            epochs=wanted.epochs,
            batch_size=wanted.batch_size,
            max_length=self._base.max_length,
            learning_rate=wanted.learning_rate,
            patience=wanted.patience,
            seed=_SEED,
        )
        if not self._work.exists:
            self._work.begin(made, *data)
        elif changed := made.differences(Job.read(self._work.path)):
            raise ConfigError(
                f"The unfinished tuning in {self._work.path} can't be resumed, because this has changed: "
                f"{', '.join(changed)}. Repeat the command that began it, or delete that folder."
            )

    def _trained(self) -> Message:
        """Train, unless the result was written before. Raises Stopped and TuningFailed."""
        if self._work.model.exists():
            return self._work.read_done()
        with self._view.training() as show:
            last = training.train(self._work, show, self._view.say)
        if last["event"] == messages.STOPPED:
            raise Stopped(
                f"Stopped after step {last['step']}; the checkpoint is in {self._work.checkpoints}. "
                "Repeat the command with --resume to go on."
            )
        return last

    async def _measured(self, done: Message, labels: Labels | None, examples: int) -> Report:
        """Compare the base model, the tuned one and the teacher on the held-out queries."""
        wanted, held_out, collection = self._wanted, self._plan.held_out(), self._plan.collection
        rankings: dict[tuple[str, str], Ranking] = {(report.FIRST, "BM25"): held_out}
        with self._view.progress() as progress:
            if not self._base.is_headless:
                base = await serving.find(self._settings, wanted.base, progress)
                async with serving.served(self._settings, base, progress) as reranker:
                    found = await serving.ranking(reranker, collection, held_out, "base model", progress)
                    rankings[report.BASE, wanted.base] = found
            tuned = await serving.find(self._settings, str(self._work.model), progress)
            async with serving.served(self._settings, tuned, progress) as reranker:
                found = await serving.ranking(reranker, collection, held_out, "tuned model", progress)
                rankings[report.TUNED, str(wanted.output)] = found
                difference = await serving.difference(reranker, self._work.check)
        if labels is not None and wanted.teacher is not None:
            rankings[report.TEACHER, wanted.teacher] = serving.by_labels(labels, collection, held_out)
        parts = self._plan.parts
        by = None if parts.held_out_is_judged or labels is None else labels.get
        judgements = self._plan.judgements(parts.held_out, by)
        return Report(
            output=str(wanted.output),
            training=len(parts.training),
            validation=len(parts.validation),
            held_out=len(parts.held_out),
            examples=examples,
            depth=wanted.candidates,
            is_judged=parts.held_out_is_judged,
            best_step=done["best_step"],
            is_early=done["early"],
            served_difference=difference,
            served_by=tuned.engine.title,
            rows=report.rows(judgements, rankings, _SEED),
        )

    def _write(self, result: Report) -> None:
        """Move the result to the output folder, which then is complete, and remove the work folder."""
        values = json.dumps(report.as_json(result), ensure_ascii=False, indent=2).encode()
        files.write_whole(self._work.model / REPORT, values, mode=0o644)
        try:
            os.rename(self._work.model, self._wanted.output)
        except OSError as error:
            raise OutputFailed(
                f"{self._wanted.output} can't be written: {error.strerror}. The tuned model is in "
                f"{self._work.model}."
            ) from None
        shutil.rmtree(self._work.path, ignore_errors=True)
