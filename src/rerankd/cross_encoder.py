"""A drop-in replacement for sentence-transformers' CrossEncoder, on rerankd's engines; no server is needed.

model = CrossEncoder("BAAI/bge-reranker-v2-m3")
scores = model.predict([("what is a panda?", "a bear of China"), ("what is a panda?", "a kind of bread")])
ranked = model.rank("what is a panda?", ["a bear of China", "a kind of bread"])

The signatures and defaults of `predict` and `rank`, and the activation that is applied by default, are those
of sentence-transformers 6.2 (cross_encoder/model.py). rerankd forms the batches itself, so `batch_size` is
only checked. Arguments that rerankd can't honour raise InvalidRequest; see `Arguments`.
"""

from __future__ import annotations

import asyncio
import weakref
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from rerankd import config
from rerankd.cross_encoder_calls import Arguments, Pairs, Row, plan, rows
from rerankd.errors import InvalidRequest, Misuse, ModelFileError, UnknownModel
from rerankd.formats import model_files
from rerankd.hub.model_ref import parse
from rerankd.hub.store import Store
from rerankd.many_requests import answer_each
from rerankd.progress import silent
from rerankd.recipes import catalog
from rerankd.service import Reranker
from rerankd.serving.prepare_model import Model
from rerankd.sync_reranker import SyncReranker

Ranked = TypeVar("Ranked")

# A call may be as long as a program wants, and no other client shares the queue.
_LIMITS: dict[str, Any] = {
    "request_timeout_s": 86_400,
    "max_documents": 1_000_000,
    "max_queue_documents": 10**8,
    "max_queue_tokens": 10**12,
    "max_queue_bytes": 2**40,
}


class _Calls(ABC, Generic[Ranked]):
    """The methods of both classes, with sentence-transformers' signatures. `Ranked` is what `rank` returns:
    the rows, or an awaitable of them."""

    _activation_fn: Any

    @abstractmethod
    def _run(self, do: Callable[[Reranker], Coroutine[Any, Any, Any]]) -> Any:
        """Return the result of `do`, or an awaitable of it."""

    def predict(
        self,
        inputs: Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Any = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        pool: Any = None,
        chunk_size: int | None = None,
    ) -> Any:
        """Return the score of each (query, document) pair as float32 array [pairs], or of a single pair as a
        number. With `convert_to_tensor` it is a torch.Tensor, which needs PyTorch; without `convert_to_numpy`
        a list of numbers."""
        given = Arguments(
            prompt_name,
            prompt,
            batch_size,
            show_progress_bar,
            activation_fn or self._activation_fn,
            device,
            pool,
            convert_to_numpy,
            convert_to_tensor,
        )
        return self._run(lambda reranker: _predict(reranker, inputs, given))

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Any = None,
        device: Any = None,
        pool: Any = None,
        chunk_size: int | None = None,
    ) -> Ranked:
        """Return the documents, best first, as `corpus_id`, `score`, and `text` with `return_documents`."""
        activation_fn = activation_fn or self._activation_fn
        given = Arguments(prompt_name, prompt, batch_size, show_progress_bar, activation_fn, device, pool)
        ranked: Ranked = self._run(
            lambda reranker: _rank(reranker, query, documents, given, top_k, return_documents)
        )
        return ranked


class CrossEncoder(_Calls[list[Row]]):
    """A cross-encoder whose engine runs until `close`, the end of a `with` block, or the end of the program.

    Threads may share it. It belongs to the process that created it.
    """

    def __init__(
        self,
        model_name_or_path: str,
        *,
        max_length: int | None = None,
        activation_fn: Any = None,
        local_files_only: bool = False,
        **settings: Any,
    ) -> None:
        """Start the model's engine; download the model first if it is not on this machine.

        The name is a model's name on Hugging Face, a file, a folder, or a reference as for `rerankd pull`.
        `settings` are rerankd's, such as `engine`, `threads` and `device`. Raises InvalidRequest, ConfigError
        and what a download and a start raise.
        """
        self._activation_fn = activation_fn
        made = _settings(model_name_or_path, max_length, activation_fn, settings, local_files_only)
        self._reranker = SyncReranker(made)
        self._reranker.start()
        self.close = weakref.finalize(self, self._reranker.close)
        """Stop the engine. Safe to call again."""
        _check(self._reranker.run(_model))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, do: Callable[[Reranker], Coroutine[Any, Any, Any]]) -> Any:
        return self._reranker.run(do)


class AsyncCrossEncoder(_Calls[Awaitable[list[Row]]]):
    """The same for programs with an event loop: `async with AsyncCrossEncoder(name) as model: …`, and
    `await model.predict(…)`."""

    def __init__(
        self,
        model_name_or_path: str,
        *,
        max_length: int | None = None,
        activation_fn: Any = None,
        local_files_only: bool = False,
        **settings: Any,
    ) -> None:
        self._activation_fn = activation_fn
        self._settings = (model_name_or_path, max_length, activation_fn, settings, local_files_only)
        self._started: Reranker | None = None

    async def __aenter__(self) -> Self:
        """Start the engine; raises what `CrossEncoder` raises."""
        self._started = Reranker(await asyncio.to_thread(_settings, *self._settings))
        await self._started.start()
        try:
            _check(self._started.model)
        except BaseException:
            await self._started.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._reranker.close()

    @property
    def _reranker(self) -> Reranker:
        if self._started is None:
            raise Misuse("This AsyncCrossEncoder has not been started. Use `async with`.")
        return self._started

    async def _run(self, do: Callable[[Reranker], Coroutine[Any, Any, Any]]) -> Any:
        return await do(self._reranker)


def _settings(
    name: str, max_length: int | None, activation_fn: Any, given: dict[str, Any], local_files_only: bool
) -> config.Settings:
    """The settings of a Reranker for one model, which is on this machine afterwards. Blocks."""
    Arguments(activation_fn=activation_fn).check()
    overrides = {**_LIMITS, **given, "model": (name,)}
    if max_length is not None:
        overrides["scoring"] = {**given.get("scoring", {}), "max_length": max_length}
    if overrides.get("device", "") is None:
        del overrides["device"]
    settings = config.from_machine(overrides)
    if settings.cascade(name) is not None:
        raise InvalidRequest(f"{name} is a cascade, which scores no single pair. Use rerankd.SyncReranker.")
    ref = _available(settings, name, local_files_only=local_files_only)
    return settings.model_copy(update={"model": (ref,)})


def _available(settings: config.Settings, name: str, *, local_files_only: bool) -> str:
    """The reference of the model, which is downloaded if it is missing."""
    parsed = parse(name)
    path = model_files.place_of(Path(name).expanduser())
    is_known = model_files.exists(path) or catalog.known().find(parsed.name) is not None
    ref = name if is_known or parsed.kind != "name" or "/" not in parsed.name else f"hf:{name}"
    store = Store(settings.home)
    try:
        store.locate(ref, silent, settings.builtin_wheel)
    except (UnknownModel, ModelFileError):
        if local_files_only or not parse(ref).is_pullable:
            raise
        # Importing the hub clients takes 0.25 s.
        from rerankd import pulling

        pulling.pull(settings, ref, say=lambda text: None, progress=silent)
    return ref


async def _model(reranker: Reranker) -> Model:
    return reranker.model


def _check(model: Model) -> None:
    """Raise InvalidRequest for a model for which sentence-transformers returns several scores a pair."""
    if model.metadata.format == "safetensors" and model.metadata.cls_output_rows > 1:
        raise InvalidRequest(
            f"{model.name} has {model.metadata.cls_output_rows} labels, so CrossEncoder.predict would return "
            "as many numbers for each pair. rerankd computes one: use rerankd.SyncReranker."
        )


async def _predict(reranker: Reranker, inputs: Any, given: Arguments) -> Any:
    pairs = Pairs.of(inputs)
    _, scores = await _scores(reranker, pairs, given)
    return given.converted(scores, is_single=pairs.is_single)


async def _rank(
    reranker: Reranker,
    query: str,
    documents: Sequence[str],
    given: Arguments,
    top_k: int | None,
    return_documents: bool,
) -> list[Row]:
    pairs = Pairs.with_query(query, documents)
    values, scores = await _scores(reranker, pairs, given)
    texts = [text for _, text in pairs.pairs] if return_documents else None
    return rows(values, scores, texts)[:top_k]


async def _scores(reranker: Reranker, pairs: Pairs, given: Arguments) -> tuple[list[float], Any]:
    """The score of each pair, before and after the activation. Raises the first error of a request or of a
    pair."""
    given.check()
    model = reranker.model
    planned = plan(pairs, given.instruction(model), given.activation(model))
    with given.progress(len(pairs.pairs)) as advance:
        outcomes = await answer_each(
            reranker, planned.requests, done=lambda request: advance(len(request.documents))
        )
    values = planned.values(outcomes)
    return values, planned.activated(values)
