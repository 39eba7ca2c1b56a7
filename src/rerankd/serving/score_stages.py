"""Score the documents of a request in stages: all with the first model, the best of them with the next one.
A request to one model has one stage."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rerankd.client import Client
from rerankd.domain import RerankRequest
from rerankd.errors import EngineError
from rerankd.metrics import Metrics
from rerankd.normalization import Normalization
from rerankd.rerank_result import RerankResult, StageResult
from rerankd.scoring import deduplicate, stages
from rerankd.scoring.result import Scored, ranked
from rerankd.scoring.stages import Candidates, StageScores
from rerankd.serving import request_checks
from rerankd.serving.document_scores import Budget, nothing_scored, score_documents, texts_to_score
from rerankd.serving.queue import QueuedRequest
from rerankd.serving.registry import ModelRegistry
from rerankd.serving.scheduler import WEIGHTS
from rerankd.serving.served_model import ServedModel


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a request must be answered: `timeout_s` after its start, at `ends` (time.monotonic); and its time
    budget."""

    timeout_s: float
    ends: float
    budget: Budget | None


@dataclass(frozen=True, slots=True)
class ModelStage:
    """A model that scores documents, and which ones (see config.cascade.Stage). `request` is the request as
    this model can read it."""

    served: ServedModel
    request: RerankRequest
    keep: int | None = None
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class StageOutcome:
    """What a stage did. `error` says why its engine has scored nothing."""

    served: ServedModel
    scored: Scored
    candidates: Candidates
    queue_s: float = 0.0
    total_s: float = 0.0
    error: str = ""

    @property
    def normalization(self) -> Normalization:
        own = self.scored.normalization or self.served.model.recipe.normalization
        return self.served.model.resolution.calibrated(own)

    @property
    def scores(self) -> StageScores:
        return StageScores(self.scored.raw, self.normalization)

    def warnings(self, *, is_later_stage: bool = False) -> tuple[str, ...]:
        """The warnings of the model and of its scores."""
        return (
            *self.served.model.resolution.warnings,
            *self.served.self_test.doubts,
            *(
                (f"This stage has scored nothing, so the order is that of the stage before. {self.error}",)
                if self.error
                else self.scored.warnings(is_later_stage=is_later_stage)
            ),
        )

    @property
    def result(self) -> StageResult:
        return StageResult(
            model=self.served.name,
            documents=len(self.candidates.documents),
            scored=self.scores.scored,
            skipped=self.candidates.skipped,
            tokens=self.scored.tokens,
            cached=self.scored.cached,
            queue_s=self.queue_s,
            engine_s=self.scored.engine_s,
            total_s=self.total_s,
            error=self.error,
        )


async def score_in_stages(
    registry: ModelRegistry,
    planned: Sequence[ModelStage],
    client: Client,
    deadline: Deadline,
    metrics: Metrics,
) -> list[StageOutcome]:
    """Admit a request to the queues of all stages, then score its documents stage by stage.

    If the engine of a later stage fails, the answer is that of the stages before, with a warning; but not if
    the request has a score_threshold, which no other score can be compared with. Raises what
    `Reranker.answer` raises.
    """
    request = planned[0].request
    count = len(request.documents)
    size_bytes = sys.getsizeof(request.query) + sum(map(sys.getsizeof, request.documents))
    outcomes: list[StageOutcome] = []
    with contextlib.ExitStack() as admitted:
        queued: list[QueuedRequest] = []
        leave: list[contextlib.ExitStack] = []
        for stage in planned:
            share = min((stage.keep or count) / count, 1.0)
            leave.append(admitted.enter_context(contextlib.ExitStack()))
            queued.append(
                leave[-1].enter_context(
                    stage.served.queue.admit(
                        client,
                        math.ceil(count * share),
                        math.ceil(size_bytes * share),
                        WEIGHTS[request.priority],
                    )
                )
            )
        for at, stage in enumerate(planned):
            started = time.perf_counter()
            chosen = _candidates(stage, [one.scores for one in outcomes]) if at else Candidates(())
            texts = texts_to_score(stage.request, stage.served, chosen.documents if at else None)
            error = ""
            try:
                if at and (not chosen.documents or (deadline.budget and not deadline.budget.left_s)):
                    scored = nothing_scored(texts)  # without loading the model
                else:
                    scored = await _scored(registry, stage, queued[at], texts, deadline, metrics)
            except EngineError as failure:
                is_over = time.monotonic() >= deadline.ends
                if not at or is_over or request.score_threshold is not None:
                    raise
                error = failure.message
                scored = nothing_scored(texts)
            leave[at].close()
            outcomes.append(
                StageOutcome(
                    stage.served,
                    scored,
                    chosen if at else Candidates(tuple(range(count))),
                    queued[at].waited_s,
                    time.perf_counter() - started,
                    error,
                )
            )
    return outcomes


def answered(
    request: RerankRequest,
    planned: Sequence[ModelStage],
    outcomes: Sequence[StageOutcome],
    name: str,
    total_s: float,
) -> RerankResult:
    """The result of a request; `name` is the displayed name of the model or cascade."""
    first, is_cascade = outcomes[0], len(outcomes) > 1
    scores = [outcome.scores for outcome in outcomes]
    rows = ranked(request, scores)
    warnings = [*request.warnings]
    for at, (stage, outcome) in enumerate(zip(planned, outcomes, strict=True)):
        warnings += stage.request.warnings[len(request.warnings) :]  # they name the model
        prefix = f"{outcome.served.name}: " if is_cascade else ""
        warnings += [f"{prefix}{one}" for one in outcome.warnings(is_later_stage=at > 0)]
    if first.scores.scored and not rows:
        warnings.append("No document reaches the score_threshold of the request.")
    last = next((outcome for outcome in reversed(outcomes) if outcome.scores.scored), first)
    return RerankResult(
        model=request.model or name,
        results=rows,
        tokens=sum(outcome.scored.tokens for outcome in outcomes),
        normalization="raw" if request.raw_scores else last.normalization.name,
        divisor=last.normalization.divisor,
        warnings=tuple(warnings),
        truncated=tuple(sorted({at for outcome in outcomes for at in outcome.scored.truncated})),
        blank=first.scored.texts.blank,
        errors=first.scored.document_errors,
        unscored=first.scored.unscored,
        cached=sum(outcome.scored.cached for outcome in outcomes),
        cached_tokens=sum(outcome.scored.cached_tokens for outcome in outcomes),
        queue_s=sum(outcome.queue_s for outcome in outcomes),
        engine_s=sum(outcome.scored.engine_s for outcome in outcomes),
        total_s=total_s,
        stages=tuple(outcome.result for outcome in outcomes) if is_cascade else (),
    )


def _candidates(stage: ModelStage, scores: Sequence[StageScores]) -> Candidates:
    request = stage.request
    # Texts in NFC and NFD are equal for some of the models.
    texts = [deduplicate.clean_content(one, nfc=True) for one in request.documents]
    return stages.candidates(
        scores, texts, stage.keep or len(texts), top_n=request.top_n, margin=stage.margin
    )


async def _scored(
    registry: ModelRegistry,
    stage: ModelStage,
    queued: QueuedRequest,
    texts: deduplicate.UniqueTexts,
    deadline: Deadline,
    metrics: Metrics,
) -> Scored:
    """Load the model and score the documents, within the deadline and the time budget."""
    served, request, budget = stage.served, stage.request, deadline.budget
    # score_documents observes the budget itself; this is for loading the model before it.
    latest = math.inf if budget is None else budget.latest
    is_loaded = False
    try:
        async with asyncio.timeout(min(deadline.ends, latest) - time.monotonic()) as limit:
            async with registry.use(served, request.keep_alive_s):
                is_loaded = True
                limit.reschedule(asyncio.get_running_loop().time() + deadline.ends - time.monotonic())
                return await score_documents(served, request, queued, texts, budget)
    except TimeoutError:
        if latest < deadline.ends and not is_loaded:
            return nothing_scored(texts)
        raise request_checks.too_late(served, deadline.timeout_s, metrics) from None
