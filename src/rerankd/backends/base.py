"""The interface of a backend: which models it can run, and how it starts and calls an engine for them.

A backend starts engines from a model's files; an engine computes scores. No code outside a backend's folder
uses its name: other code iterates over the table in table.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from rerankd.backends.options import Options
from rerankd.backends.safer_steps import Step
from rerankd.domain import Recipe, Refusal
from rerankd.errors import EngineError
from rerankd.formats.patch import Patch
from rerankd.process.child import Launch, Running
from rerankd.scoring.tokenizer import Tokenizer

if TYPE_CHECKING:
    from rerankd.backends.token_vectors import KeptVectors
    from rerankd.embedding import Vectors
    from rerankd.formats.metadata import ModelMetadata
    from rerankd.machine import Gpu
    from rerankd.progress import Progress
    from rerankd.scoring.block_scores import Block
    from rerankd.scoring.engine_input import Input
    from rerankd.state import StateStore

Scope = Literal["pair", "block"]
"""What a raw score depends on: its pair alone, or the whole block that was scored together."""


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """The batch size of an engine and other rules by which the queue forms a batch; a batch is one call.

    A batch holds at least one input, at most `inputs` of them, and up to `tokens` tokens, padding included.
    If the engine computes more than that within `call_s`, batches grow up to `most_tokens`, because each
    call has a fixed cost. With `pads`, the engine pads the inputs of a batch to the longest: the queue then
    groups inputs of similar length, and uses a power of two as their number if that fills the batch. With
    `one_question`, all inputs of a batch belong to one query. The engine caches the part of the prompt that
    inputs of a query share, so the queue sends batches of the same query in sequence, up to `run_tokens`
    tokens, before it switches to another. `at_engine` is the number of concurrent calls: the engine gets the
    next one `ahead_s` before it is expected to be free, the time that it takes to prepare it."""

    tokens: int
    most_tokens: int
    inputs: int = 64
    pads: bool = False
    one_question: bool = False
    run_tokens: int = 0
    call_s: float = 0.05
    at_engine: int = 2
    ahead_s: float = 0.01


@dataclass(frozen=True, slots=True)
class Batch:
    """The inputs of one engine call. With the scope "block", they are one block of one query."""

    inputs: tuple[Input, ...]


@dataclass(frozen=True, slots=True)
class RawScores:
    """Raw scores, one per input in the order of the batch. A score is None if that input failed; `errors`
    then holds the reason by index, as a clause: "the engine crashed on it". `block` has the vectors of a
    block, from which the scores of several blocks are merged."""

    values: Sequence[float | None]
    errors: Mapping[int, str] = field(default_factory=dict)
    block: Block | None = None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine supports.

    `reads`: the engine takes token ids, or text if its protocol accepts nothing else. `tokenizes`: the
    engine's own tokenizer is used, else that in the model's files. With the scope "block", a request is
    divided into blocks, one batch per block: by the recipe, or of up to `BatchPolicy.inputs` documents.
    `content`: what queries and documents may consist of.
    """

    scope: Scope = "pair"
    reads: Literal["ids", "text"] = "ids"
    tokenizes: bool = False
    content: frozenset[Literal["text", "image"]] = frozenset(("text",))


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that determine a model's memory: bytes of its weights, number of layers, and per token and
    layer the numbers in its hidden state and in its keys and values. 0 if the file does not declare one."""

    weights_bytes: int = 0
    layers: int = 0
    width: int = 0
    kv_width: int = 0


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """A model as a backend needs it: its recipe and its files.

    `control_tokens` maps the text of each control token of the vocabulary to its id. `exact`: the weights are
    not quantised, so the arithmetic is the largest remaining error. `metadata` is read from the files, and
    `fingerprint` identifies them (see serving/prepare_model.py). `needs_build` is the oldest build that
    computes the model correctly, for engines with build numbers. Each of the `replicas` has `threads` threads
    and keeps up to `document_vectors_bytes` of the vectors of documents (see token_vectors.py)."""

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
    document_vectors_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Offer:
    """How a backend would run a model. The offer with the highest `rank` is used; `reason` is a clause that
    explains the rank. `is_own_program`: the engine is a program of the user, whose scores are not rerankd's
    responsibility.

    `name` is the engine's name, and `build` identifies its build. `memory_bytes` is an estimate for all
    replicas, used until their memory is measured. `on_cpu`: no part of the model is on a GPU. `patch`: the
    engine loads a copy of the model's file with this change; the path in `spec` is then that of the copy,
    once it is made. `spans_cards`: a replica may be spread over several GPUs; otherwise each is on one.
    `cards` are the GPUs that may be used (see memory.card), () any. `shortfall`: why the rank is not higher,
    as a clause that users should know; "" if nothing is missing. `prompt_rate`: see Backend.prompt_rate.
    `rounds_to`: the type to which the engine rounds weights, whatever the file's; "" for no other.
    `unused`: names of settings that have no effect here (see backend_offers.with_unused).
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
    patch: Patch | None = None
    spans_cards: bool = True
    cards: tuple[str, ...] = ()
    shortfall: str = ""
    prompt_rate: float = 0.0
    rounds_to: str = ""
    unused: frozenset[str] = frozenset()


class Rank:
    """The ranks of an offer. LAST_ON_CPU: correct, but another engine computes faster there. NAMED: the user
    chose this engine by name, so no other one replaces it."""

    LAST_ON_CPU, CPU, BEST_ON_CPU, GPU, NAMED = range(5)


@dataclass(frozen=True, slots=True)
class Installation:
    """An engine that is installed on this machine, for lists and benchmarks.

    `label` is its name in a table of all backends' engines. A service started with the variables in
    `environment` uses it. `used`: the backend's models run on it now. `runs_here`: this CPU supports it.
    `details` holds further facts for JSON output."""

    name: str
    label: str
    environment: Mapping[str, str]
    used: bool
    runs_here: bool = True
    details: Mapping[str, Any] = field(default_factory=dict)


Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of `rerankd doctor`. `step` is the next step, possibly several lines, or "" if none is
    needed."""

    check: str
    status: Status
    says: str
    step: str = ""

    @classmethod
    def reachable(cls, host: str, problem: str) -> Check:
        """Report whether a host on the network can be reached; `problem` is "" if it can."""
        if problem:
            return cls(host, "warn", f"can't be reached: {problem}", "check the network and HTTPS_PROXY")
        return cls(host, "ok", "can be reached")


@dataclass(frozen=True, slots=True)
class Checkup:
    """Options of `rerankd doctor`: `online` also checks the network, `again` repeats measurements that are
    stored per model. `cuda_mirror` is a copy of NVIDIA's package repositories, for the printed commands that
    install CUDA."""

    report: Progress
    online: bool = False
    again: bool = False
    cuda_mirror: str | None = None


class Engine(Running, Tokenizer, Protocol):
    """The client of one running engine. It never sorts, normalizes or truncates, and raises only EngineError.
    Calls may run concurrently, and cancelling a call stops its computation. `about` describes the running
    engine, or is "" if the offer's title is enough. The Tokenizer methods are called only if
    `Capabilities.tokenizes` is set. An engine that can't report token ids returns none; the service then
    truncates nothing. `kept`: the document vectors that it keeps, as of the last call; they are neither used
    nor added to unless `uses_kept`."""

    about: str
    kept: KeptVectors | None = None
    uses_kept: bool = True

    async def score(self, batch: Batch) -> RawScores:
        """Return the raw score of each input. Raises InputTooLong if an input exceeds max_length, or another
        EngineError."""

    async def embed(self, batch: Batch) -> Vectors:
        """Return the vector of each input as the model computes it: [inputs, width]."""
        raise EngineError("This engine computes no vectors.")


class Backend(Protocol):
    """One way to run models, such as llama.cpp or OpenVINO.
    Methods are pure unless their docstring says that they inspect the machine or start a process. `title` is
    the name for use in sentences, `summary` what the backend is good for. `packages` are the packages whose
    versions a benchmark reports. `Options` are the backend's own settings."""

    name: str
    title: str
    summary: str
    packages: tuple[str, ...]

    @property
    def Options(self) -> type[Options]: ...

    def survey(self, options: Any, home: Path, spec: EngineSpec | None = None) -> Any:
        """Inspect this machine, for a model if given, within a second. Returns the input of `offer`."""

    def installations(self, options: Any, home: Path) -> Sequence[Installation]:
        """List the backend's engines on this machine. Inspects the machine; takes up to a second."""

    def cards(self, survey: Any, options: Any) -> tuple[Gpu, ...] | None:
        """Return the GPUs that its engines can use, or None if that is unknown."""

    def offer(self, spec: EngineSpec, options: Any, survey: Any) -> Offer | Refusal:
        """Return how the backend would run the model, or why it can't."""

    def prompt_rate(self, offer: Any, learned: StateStore, *, measure: bool) -> float:
        """Return how fast this CPU computes the prompts of a causal model with this offer, in GFLOP/s for one
        thread (see prompt_rate.py); 0 if that is not known. With `measure`, measure it if it is not known,
        which takes some seconds."""

    async def settle(self, offer: Any, learned: StateStore, log: Path, timeout_s: float) -> Any:
        """Complete the offer with facts that are determined right before a load: the result of a trial, the
        free GPU memory. May start a process."""

    def steps(self, offer: Any, cards: Sequence[str]) -> tuple[Step, ...]:
        """List safer settings to try in order when the engine crashes. Settings that would change nothing for
        this model are left out."""

    def identity(self, offer: Any, taken: Sequence[Step]) -> str:
        """Return everything a raw score depends on besides model and texts: build, precision, device. It is
        part of the cache key."""

    def launch(self, offer: Any, taken: Sequence[Step], cards: Sequence[str], socket: Path) -> Launch[Engine]:
        """Return how to start an engine that listens on `socket`, with the safer settings `taken`. `cards`
        are the GPUs it may use (see memory.card); an empty sequence means all."""

    def reference(self, spec: EngineSpec, running: Offer) -> Offer | None:
        """Return a second computation of the model for the self-test to compare with the running one, or
        None if this backend has none that differs."""

    def checks(self, options: Any, home: Path, checkup: Checkup) -> Sequence[Check]:
        """Check what the backend needs of this machine, for doctor. May take some seconds."""

    async def model_checks(
        self, offer: Any, learned: StateStore, log: Path, timeout_s: float, checkup: Checkup
    ) -> Sequence[Check]:
        """Report what `settle` determined for a model, and determine it again if `checkup.again` is set."""
