"""The arguments and results of CrossEncoder: pairs to requests, and raw scores to what it returns."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NotRequired

import numpy as np
from typing_extensions import TypedDict

from rerankd.domain import RerankRequest
from rerankd.errors import EngineError, InvalidRequest, MissingExtra, RerankdError
from rerankd.many_requests import Outcome
from rerankd.normalization import Normalization
from rerankd.scoring import normalize
from rerankd.serving.prepare_model import Model

# Few enough for a steady progress bar, and enough to fill a batch.
_DOCUMENTS_PER_REQUEST = 64

Activation = Literal["identity", "sigmoid"]
_ACTIVATIONS: dict[str, Activation] = {"Identity": "identity", "Sigmoid": "sigmoid"}
_SIGMOID = Normalization("sigmoid")


class Row(TypedDict):
    """A document of `rank`: its index, score and text."""

    corpus_id: int
    score: float
    text: NotRequired[str]


@dataclass(frozen=True, slots=True)
class Pairs:
    """(query, document) pairs. `is_single`: the caller gave one pair instead of a list."""

    pairs: tuple[tuple[str, str], ...]
    is_single: bool = False

    @classmethod
    def of(cls, inputs: Any) -> Pairs:
        """Read what `predict` accepts: a pair, a list of pairs, or a numpy array of either. Raises
        InvalidRequest."""
        found = inputs.tolist() if isinstance(inputs, np.ndarray) else inputs
        if isinstance(found, str | bytes | dict):
            raise InvalidRequest(
                f"predict received one {type(found).__name__}, but needs (query, document) pairs."
            )
        if not isinstance(found, Iterable):
            raise InvalidRequest(f"predict received {found!r:.80}, but needs (query, document) pairs.")
        found = list(found)
        is_single = len(found) > 0 and not isinstance(found[0], list | tuple | np.ndarray)
        return cls(tuple(_pair(one, at) for at, one in enumerate([found] if is_single else found)), is_single)

    @classmethod
    def with_query(cls, query: str, documents: Any) -> Pairs:
        """Pairs of one query. Raises InvalidRequest."""
        if isinstance(documents, str | bytes | dict) or not isinstance(documents, Iterable):
            raise InvalidRequest(
                f"rank received the documents {documents!r:.80}, but needs a list of strings."
            )
        return cls(tuple(_pair((query, document), at) for at, document in enumerate(documents)))


def _pair(one: Any, at: int) -> tuple[str, str]:
    is_row = isinstance(one, list | tuple | np.ndarray)
    if not is_row or len(one) != 2 or not all(isinstance(text, str) for text in one):
        raise InvalidRequest(
            f"Pair {at} is {one!r:.80}, but must be a query and a document, both strings. Images and other "
            "content are not supported."
        )
    query, document = one
    return str(query), str(document)  # without numpy's subclass of str


@dataclass(frozen=True, slots=True)
class Plan:
    """The requests for some pairs, the positions of each request's documents among the pairs, and what is
    applied to the scores of the responses (None: nothing, they are normalized already)."""

    requests: tuple[RerankRequest, ...]
    places: tuple[tuple[int, ...], ...]
    activation: Activation | None

    def activated(self, values: Sequence[float]) -> Any:
        """The scores to return, as float32 array, for the scores of the responses."""
        if self.activation == "sigmoid":
            values = [normalize.score(value, _SIGMOID) for value in values]
        return np.asarray(values, np.float32)

    def values(self, outcomes: Sequence[Outcome]) -> list[float]:
        """The score of each pair, before the activation. Raises the first error, and EngineError for a pair
        that could not be scored."""
        found = [0.0] * sum(map(len, self.places))
        for outcome, places in zip(outcomes, self.places, strict=True):
            if isinstance(outcome, RerankdError):
                raise outcome
            for error in outcome.errors:
                raise EngineError(f"Pair {places[error.index]} could not be scored: {error.reason}.")
            for scored in outcome.results:
                found[places[scored.index]] = scored.score
        return found


def plan(pairs: Pairs, instruction: str | None, activation: Activation | None) -> Plan:
    """Make one request for the pairs of each query, or several if there are many."""
    by_query: dict[str, list[int]] = {}
    for at, (query, _) in enumerate(pairs.pairs):
        by_query.setdefault(query, []).append(at)
    places = [
        tuple(of_query[start : start + _DOCUMENTS_PER_REQUEST])
        for of_query in by_query.values()
        for start in range(0, len(of_query), _DOCUMENTS_PER_REQUEST)
    ]
    requests = tuple(
        RerankRequest(
            query=pairs.pairs[some[0]][0],
            documents=tuple(pairs.pairs[at][1] for at in some),
            instruction=instruction,
            raw_scores=activation is not None,
            truncate_query=True,
        )
        for some in places
    )
    return Plan(requests, tuple(places), activation)


def rows(values: Sequence[float], scores: Any, documents: Sequence[str] | None) -> list[Row]:
    """The rows of `rank`, in the order of the values before the activation; with texts if `documents` is
    given."""
    found: list[Row] = []
    for at in normalize.rank(values):
        row: Row = {"corpus_id": at, "score": float(scores[at])}
        if documents is not None:
            row["text"] = documents[at]
        found.append(row)
    return found


@dataclass(frozen=True, slots=True)
class Arguments:
    """The arguments of `predict` and `rank` beside the texts.

    `activation_fn`: None for the model's own, "identity", "sigmoid", or an object of these two classes of
    torch.nn. `prompt`: the instruction, for models whose template has one. `show_progress_bar`: True shows
    one, by tqdm. Not supported: other activations, `prompt_name`, and `device` and `pool`, which are settings
    of the object.
    """

    prompt_name: str | None = None
    prompt: str | None = None
    batch_size: int = 32
    show_progress_bar: bool | None = None
    activation_fn: Any = None
    device: Any = None
    pool: Any = None
    convert_to_numpy: bool = True
    convert_to_tensor: bool = False

    def check(self) -> None:
        """Raise InvalidRequest for what is not supported, and MissingExtra for tensors without PyTorch."""
        self._activation()
        if self.batch_size <= 0:
            raise InvalidRequest(f"batch_size must be a positive integer, but is {self.batch_size}.")
        if self.prompt_name is not None:
            raise InvalidRequest("prompt_name is not supported. Pass the prompt itself as prompt.")
        if self.device is not None or self.pool is not None:
            raise InvalidRequest(
                "device and pool are not supported in a call: rerankd's engine is already running. Create "
                "the CrossEncoder with the settings device and replicas."
            )
        if self.convert_to_tensor:
            _torch()

    def _activation(self) -> Activation | None:
        wanted = self.activation_fn
        if wanted is None:
            return None
        of = type(wanted)
        name = wanted.title() if isinstance(wanted, str) else of.__name__
        is_torch = of.__module__.startswith("torch.nn.")
        if name not in _ACTIVATIONS or not (is_torch or isinstance(wanted, str)):
            raise InvalidRequest(
                f"activation_fn is {wanted!r:.80}, but rerankd only supports torch.nn.Identity(), "
                'torch.nn.Sigmoid() and the strings "identity" and "sigmoid". Request "identity", and apply '
                "your function to the result."
            )
        return _ACTIVATIONS[name]

    def instruction(self, model: Model) -> str | None:
        """The instruction of the requests. Raises InvalidRequest for a model that has none."""
        if self.prompt is not None and "{instruction}" not in model.recipe.template:
            raise InvalidRequest(
                f"prompt is not supported by {model.name}, which has no instruction. Put the text before the "
                "query yourself."
            )
        return self.prompt

    def activation(self, model: Model) -> Activation | None:
        """The requested activation, else the one that the model's files declare for sentence-transformers.
        None for a model that the library's CrossEncoder does not read: its scores are rerankd's."""
        layout, method = model.metadata.layout, model.recipe.method
        if layout is not None and method in ("cross_encoder", "causal_lm"):
            return self._activation() or layout.activation
        return self._activation()

    def converted(self, scores: Any, *, is_single: bool) -> Any:
        """The scores in the requested type; one number for a single pair."""
        found = scores
        if self.convert_to_tensor:
            found = _torch().from_numpy(scores)
        elif not self.convert_to_numpy:
            found = list(scores)
        return found[0] if is_single else found

    @contextlib.contextmanager
    def progress(self, total: int) -> Iterator[Callable[[int], None]]:
        """Show a progress bar if one is wanted; yields the function that advances it."""
        if not self.show_progress_bar:
            yield lambda count: None
            return
        tqdm = importlib.import_module("tqdm.auto").tqdm  # which huggingface_hub requires
        with tqdm(total=total, desc="Pairs") as bar:
            yield bar.update


def _torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError:
        raise MissingExtra(
            "convert_to_tensor needs PyTorch, which is not installed: pip install 'rerankd[torch]', or use "
            "the numpy array that predict returns by default."
        ) from None
