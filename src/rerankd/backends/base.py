"""What a backend is to the rest of the house: it says what it can run, and how.

A backend makes engines from a model's files; an engine scores. Nothing outside a backend's folder knows its
name: the registry, the loader, doctor and the benchmark walk the table (table.py).

The contract was walked through five cases before it was written. llama.cpp with a prompt prefix that is kept:
batches of one question follow each other. OpenVINO's cross-encoder: `settle` waits for the trial of bf16. A
listwise model: a batch is a block of documents. Late interaction: document vectors that are kept are the
engine's own affair. A remote server that counts no tokens: an `Engine` without a backend, a file or a child.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from rerankd.backends.options import Options
from rerankd.backends.safer_steps import Step
from rerankd.domain import Recipe, Refusal
from rerankd.process.child import Launch, Running
from rerankd.scoring.tokenizer import Tokenizer

if TYPE_CHECKING:
    from rerankd.formats.metadata import ModelMetadata
    from rerankd.machine import Gpu
    from rerankd.progress import Progress
    from rerankd.scoring.engine_input import Input
    from rerankd.state import StateStore


Scope = Literal["pair", "block"]
"""What a value depends on: its pair alone, or the whole block that it was scored in."""


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """How an engine is given its work: what the queue puts into one batch, which is one call.

    A batch holds up to `tokens`, padding included, and one input at least. An engine that computes more than
    that within `call_s` gets as much, up to `most_tokens`, since each call costs the service and the engine
    some work of its own. `inputs` bounds their number. With `pads`, inputs of a batch are padded to the
    longest one, so those of nearly one length go together, and their number is a power of two where that
    holds enough. `one_question`: the inputs of a batch have one question. `run_tokens`: batches of one
    question follow each other for so many tokens before another one's turn, since the engine keeps what it
    has read of the question. `at_engine` calls are there at a time: the one under way and the next."""

    tokens: int
    most_tokens: int
    inputs: int = 64
    pads: bool = False
    one_question: bool = False
    run_tokens: int = 0
    call_s: float = 0.05
    at_engine: int = 2


@dataclass(frozen=True, slots=True)
class Batch:
    """What one engine call gets. With the scope "block", its inputs are one block, of one question."""

    inputs: tuple[Input, ...]


@dataclass(frozen=True, slots=True)
class RawScores:
    """Raw values, one per input in the order of the batch. A value is None where `errors` says why that input
    has none, as a clause: "the engine crashed on it"."""

    values: Sequence[float | None]
    errors: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine does.

    `reads`: ids, or text, where its protocol takes nothing else. `tokenizes`: the engine's own tokenizer is
    the one to ask; else the model's files have one that the service reads. With the scope "block", a block is
    one batch of up to the policy's number of inputs, made when the request comes, and no value is kept for
    another request.
    """

    scope: Scope = "pair"
    reads: Literal["ids", "text"] = "ids"
    tokenizes: bool = False


@dataclass(frozen=True, slots=True)
class Shape:
    """How much memory a model takes: bytes of its weights, layers, numbers a token takes in one of them, and
    numbers that its keys and values take there. 0 where the file does not say.
    """

    weights_bytes: int = 0
    layers: int = 0
    width: int = 0
    kv_width: int = 0


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """All that a backend must know of the model it runs: its recipe and its files.

    `control_tokens` maps the text of each control token of the vocabulary to its id. `exact` says that the
    weights are not quantised, so that the arithmetic around them is the largest error left. `metadata` is
    what the files say, `fingerprint` tells them from others (see serving/prepare_model.py). `needs_build` is
    the oldest build of an engine with numbered builds that computes the model right. Each of `replicas`
    engines has `threads`."""

    name: str
    path: Path
    recipe: Recipe
    control_tokens: Mapping[str, int]
    exact: bool = False
    shape: Shape = Shape()
    metadata: ModelMetadata | None = None
    fingerprint: str = ""
    needs_build: int = 0
    threads: int = 1
    replicas: int = 1


@dataclass(frozen=True, kw_only=True)
class Offer:
    """How a backend would run a model. Of several backends the one with the highest `rank` does; `reason`
    says why, as a clause. `is_own_program`: it is a program of the user's, which may compute what it likes.

    `name` is the engine's, `build` tells its builds apart. `memory_bytes` is what its engines may hold, for
    as long as that has not been measured. `on_cpu`: nothing of it is on a GPU.
    """

    backend: Backend
    spec: EngineSpec
    name: str
    build: str
    title: str
    reason: str
    rank: int
    memory_bytes: int
    policy: BatchPolicy
    capabilities: Capabilities = Capabilities()
    on_cpu: bool = True
    is_own_program: bool = False


class Rank:
    """What an offer's rank means. NAMED: the user has named what is to run; nothing else takes its place."""

    CPU, BEST_ON_CPU, GPU, NAMED = range(4)


@dataclass(frozen=True, slots=True)
class Installation:
    """An engine on this machine, for lists and comparisons: `label` is its name in a table of several
    backends' engines, `environment` makes a service use it, `used` says that models of the backend run on it,
    and `runs_here` that this CPU can. `details` are more for programs that read."""

    name: str
    label: str
    environment: Mapping[str, str]
    used: bool
    runs_here: bool = True
    details: Mapping[str, Any] = field(default_factory=dict)


Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of doctor. `step` is what to do next, "" where nothing needs doing; it may have several
    lines."""

    check: str
    verdict: Verdict
    says: str
    step: str = ""

    @classmethod
    def of_place(cls, place: str, problem: str) -> Check:
        """Whether a place on the network answers; `problem` is "" where it does."""
        if problem:
            return cls(place, "warn", f"can't be reached: {problem}", "check the network and HTTPS_PROXY")
        return cls(place, "ok", "can be reached")


@dataclass(frozen=True, slots=True)
class Checkup:
    """What doctor is asked for: `online` to ask the network too, `again` to find out anew what is kept of
    models. `cuda_mirror` is a copy of NVIDIA's package repositories, for commands that install CUDA."""

    report: Progress
    online: bool = False
    again: bool = False
    cuda_mirror: str | None = None


class Engine(Running, Tokenizer, Protocol):
    """One running engine. It scores and nothing else: it never sorts, normalises or truncates; it raises only
    EngineError; it may be called concurrently; a call that is cancelled frees it.

    `about` is what computes, in words, "" where the offer's title says all. As a Tokenizer it is asked only
    where its capabilities say that it tokenizes; one that can't tell says no ids, and then nothing is
    truncated here."""

    about: str

    async def score(self, batch: Batch) -> RawScores:
        """The raw value of each input of the batch.

        Raises InputTooLong where an input does not fit max_length, else another EngineError.
        """


class Backend(Protocol):
    """How to make an engine from files, and what doctor says of it. What looks at the machine or runs
    something says so; all else is pure. `title` is its name in sentences, `summary` what it is good for,
    `packages` are those whose versions belong to a benchmark's figures, `Options` are its own settings."""

    name: str
    title: str
    summary: str
    packages: tuple[str, ...]

    @property
    def Options(self) -> type[Options]: ...

    def survey(self, options: Any, home: Path, spec: EngineSpec | None = None) -> Any:
        """What this machine has for the backend, and for a model where one is given: a value that `offer`
        decides by. Takes up to a second."""

    def installations(self, options: Any, home: Path) -> Sequence[Installation]:
        """Its engines on this machine. Takes up to a second."""

    def cards(self, survey: Any, options: Any) -> tuple[Gpu, ...] | None:
        """The cards that its engines can use; None where that is not known."""

    def offer(self, spec: EngineSpec, options: Any, survey: Any) -> Offer | Refusal:
        """How it would run the model, or why it can't."""

    async def settle(self, offer: Any, learned: StateStore, log: Path, timeout_s: float) -> Any:
        """The offer with what is only known before a load: what was tried, what is free on the cards now."""

    def steps(self, offer: Any, cards: Sequence[str]) -> tuple[Step, ...]:
        """Safer settings for an engine that crashes, one after the other; those that would change nothing for
        this model are left out."""

    def identity(self, offer: Any, taken: Sequence[Step]) -> str:
        """What the values depend on beside model and texts: build, precision, device."""

    def launch(self, offer: Any, taken: Sequence[Step], cards: Sequence[str], socket: Path) -> Launch[Engine]:
        """How an engine is started with the steps that are taken. `cards` are those that it may use (see
        memory.card), none for all."""

    def reference(self, spec: EngineSpec, running: Offer) -> Offer | None:
        """A second computation to compare what runs with; None where the backend has none that differs."""

    def checks(self, options: Any, home: Path, checkup: Checkup) -> Sequence[Check]:
        """What of this machine matters to it. May take some seconds."""

    async def model_checks(
        self, offer: Any, learned: StateStore, log: Path, timeout_s: float, checkup: Checkup
    ) -> Sequence[Check]:
        """What `settle` has found out, or finds out anew."""
