"""A loaded model: token ids in, one or more rows of outputs per input out (see worker/scorer.py, Network)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rerankd.backends.torch import budget
from rerankd.backends.torch.architecture import Architecture, pooled_as
from rerankd.backends.torch.attention import attend
from rerankd.backends.torch.batch import PackedBatch
from rerankd.backends.torch.heads import Head
from rerankd.backends.torch.layers import Named, Rotation, rotation
from rerankd.backends.torch.packing import NO_PREFIX, Int32, Tokens, pack, padded_passes, passes
from rerankd.backends.torch.prefixes import SHORTEST, Prefix, PrefixCache
from rerankd.backends.torch.steps import Before, Steps
from rerankd.backends.worker.passes import Pause, Pending, Reading, Vectors, never
from rerankd.backends.worker.protocol import DeviceLost

# Errors of libraries on a device, for which PyTorch has no class.
_LOST = ("CUDA error", "CUDA driver error", "cuDNN error")


@dataclass(frozen=True, slots=True)
class Loaded:
    """The weights of a model on `device`: those that are needed once, and those of each layer. Its vocabulary
    has `rows` token ids."""

    architecture: Architecture
    weights: Named
    layers: Sequence[Named]
    head: Head
    device: torch.device
    rows: int


class Network:
    """Computes a loaded model. Not thread-safe.

    `tokens_a_pass` is halved when a pass runs out of the device's memory, and the pass repeated in parts.
    `steps` may be replaced at any time.
    """

    passes_ahead = 1

    def __init__(self, loaded: Loaded, about: str, tokens_a_pass: int, *, uses_varlen: bool = False) -> None:
        self.about = about
        self.rows = loaded.rows
        architecture = loaded.architecture
        self.shares_prefix = architecture.shares_prefix and loaded.head.pooling == "last"
        self.tokens_a_pass = tokens_a_pass
        self.prefixes = PrefixCache(budget.PREFIX_BYTES)
        self.steps = Steps(loaded.architecture)
        self._loaded = loaded
        self._uses_varlen = uses_varlen
        self._nothing = Prefix(_nothing(loaded)) if self.shares_prefix else None

    def twin(self) -> Network:
        """A network with the same weights, for another thread."""
        return Network(self._loaded, self.about, self.tokens_a_pass, uses_varlen=self._uses_varlen)

    def passes(self, readings: Sequence[Reading]) -> list[list[int]]:
        divide = passes if self._uses_varlen else padded_passes
        # No kernel for packed sequences hides tokens, so a query that is filled up would slow its pass.
        groups = [
            [at for at, one in enumerate(readings) if (one.attended is None) is seen]
            for seen in (True, False)
        ]
        return [
            [group[place] for place in places]
            for group in groups
            for places in divide([len(readings[at].ids) for at in group], self.tokens_a_pass)
        ]

    def start(self, readings: Sequence[Reading], pause: Pause = never) -> Pending:
        """See scorer.Network. Raises torch.OutOfMemoryError if the memory does not suffice for one input, and
        DeviceLost, also when the rows are read."""
        try:
            with _device_errors():
                return _guarded(self._started(readings))
        except torch.OutOfMemoryError:
            if len(readings) == 1:
                raise
        self.tokens_a_pass = max(self.tokens_a_pass // 2, budget.LEAST)
        self.prefixes.clear()
        if self._loaded.device.type == "cuda":
            torch.cuda.empty_cache()
        middle = len(readings) // 2
        parts = [self.start(readings[:middle], pause), self.start(readings[middle:], pause)]
        return lambda: [one for wait in parts for one in wait()]

    def _started(self, readings: Sequence[Reading]) -> Pending:
        with torch.inference_mode():
            starts = self._starts(readings)
            found = {start: self.prefixes.get(start) for start in dict.fromkeys(starts) if start}
            kept = {start: prefix for start, prefix in found.items() if prefix is not None}
            new = [start for start, prefix in found.items() if prefix is None]
            if new and not self._uses_varlen:
                # Padded attention would pad all inputs to the length of a prefix.
                kept |= self._kept(new)
                new = []
            if self._nothing is not None and not kept:
                kept = {b"": self._nothing}  # one kind of pass for all inputs: the compiler sees only one
            places = {start: at for at, start in enumerate((*kept, *new))} | {b"": NO_PREFIX}
            sequences = [_whole(start) for start in new]
            for one, start in zip(readings, starts, strict=True):
                length = len(start) // one.ids.itemsize
                sequences.append(
                    Tokens(one.ids[length:], one.second - length, places[start], one.wanted, one.attended)
                )
            values, counts, made = self._outputs(sequences, [*kept.values()], len(new))
            for start, prefix in zip(new, made, strict=True):
                self.prefixes.put(start, prefix)
            wait = _pending(values)
            return wait if self._loaded.head.pooling != "none" else lambda: _rows_of_each(wait(), counts)

    def _starts(self, readings: Sequence[Reading]) -> list[bytes]:
        """The ids at the start of each input whose keys and values are kept; empty for none."""
        if not self.shares_prefix:
            return [b""] * len(readings)
        made: dict[tuple[int, int], bytes] = {}  # inputs of one question have the same stem
        found = []
        for one in readings:
            key = (id(one.stem) if one.stem else id(one.ids), one.shared)
            if key not in made:
                made[key] = self._start(one)
            found.append(made[key])
        return found

    def _start(self, reading: Reading) -> bytes:
        """A prefix that is kept and nearly as long as what the question's inputs share is preferred to a new
        one."""
        shared = min(reading.shared, len(reading.ids) - 1)  # the last token is computed: its state is read
        wanted = reading.ids[:shared].tobytes()
        known = self.prefixes.longest(wanted)
        is_near = len(wanted) - len(known) < SHORTEST * reading.ids.itemsize
        return known if is_near else wanted

    def _kept(self, starts: Sequence[bytes]) -> dict[bytes, Prefix]:
        """Compute prefixes in a pass of their own."""
        assert self._nothing is not None
        sequences = [_whole(start) for start in starts]
        arrays = pack(sequences, [self._nothing.length], "last")
        batch = PackedBatch(arrays, self._loaded.device, uses_varlen=self._uses_varlen)
        *_, made = self._mixed(batch, self._nothing.layers, int(arrays.offsets[-1]))
        assert made is not None
        found = dict(zip(starts, _split(made, sequences), strict=True))
        for start, prefix in found.items():
            self.prefixes.put(start, prefix)
        return found

    def _outputs(
        self, sequences: Sequence[Tokens], kept: Sequence[Prefix], new: int
    ) -> tuple[Tensor, Int32, list[Prefix]]:
        """The head's values [N, 1], embeddings [N, width], or vectors of tokens [R, width], on the device,
        and how many rows the head has read of each sequence. The first `new` sequences are prefixes: their
        keys and values."""
        loaded = self._loaded
        architecture = loaded.architecture
        arrays = pack(sequences, [one.length for one in kept], pooled_as(loaded.head.pooling), new)
        batch = PackedBatch(arrays, loaded.device, uses_varlen=self._uses_varlen)
        before = torch.cat([one.layers for one in kept], 2) if kept else None
        x, mixed, made = self._mixed(batch, before, sum(len(one.ids) for one in sequences[:new]))
        if batch.rows is not None:  # after the last attention, only the tokens that the head reads
            x, mixed = x[batch.rows], mixed[batch.rows]
        rows = architecture.finish(x, mixed, loaded.layers[-1])
        values = loaded.head(architecture.final(rows, loaded.weights), batch)
        return values, arrays.row_counts, _split(made, sequences[:new]) if made is not None else []

    def _mixed(
        self, batch: PackedBatch, before: Tensor | None, new: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The states before the last layer, what its attention returns, and all keys and values of the first
        `new` tokens, which no prefix precedes."""
        loaded, steps = self._loaded, self.steps
        x = loaded.architecture.embed(batch, loaded.weights)
        made = None
        if before is not None and new:
            made = before.new_empty(*before.shape[:2], new, *before.shape[3:])
        query, key, value = steps.first(x, loaded.layers[0], *self._reads(batch, before, 0, x.dtype))
        for at, attention in enumerate(loaded.architecture.attentions):
            if made is not None:
                made[at, 0], made[at, 1] = key[:new], value[:new]
            mixed = attend(query, key, value, batch, attention)
            if at + 1 < len(loaded.layers):
                read = self._reads(batch, before, at + 1, x.dtype)
                x, (query, key, value) = steps.between(
                    x, mixed, loaded.layers[at], loaded.layers[at + 1], *read
                )
        return x, mixed, made

    def _reads(
        self, batch: PackedBatch, before: Tensor | None, at: int, dtype: torch.dtype
    ) -> tuple[Rotation | None, Before | None]:
        """What layer `at` reads besides its states and weights: rotary positions, and keys of prefixes."""
        architecture = self._loaded.architecture
        rotary = architecture.attentions[at].rotary
        turned = None
        if rotary is not None:
            turned = batch.once(
                rotary, lambda: rotation(batch.positions, architecture.head_width, rotary, dtype)
            )
        if before is None or batch.key_index is None:
            return turned, None
        return turned, Before(before[at, 0], before[at, 1], batch.key_index)


def _whole(start: bytes) -> Tokens:
    ids = np.frombuffer(start, np.int32)
    return Tokens(ids, len(ids))


def _split(made: Tensor, sequences: Sequence[Tokens]) -> list[Prefix]:
    """The keys and values of these sequences: clones, because a view would keep all of them in memory."""
    parts = made.split([len(one.ids) for one in sequences], 2)
    return [Prefix(one.clone() if len(parts) > 1 else one) for one in parts]


def _rows_of_each(rows: Vectors, counts: Int32) -> list[Vectors]:
    return np.split(rows, np.cumsum(counts)[:-1])


def _guarded(wait: Pending) -> Pending:
    def guarded() -> Iterable[Vectors]:
        with _device_errors():
            return wait()

    return guarded


@contextlib.contextmanager
def _device_errors() -> Iterator[None]:
    """Raise DeviceLost for an error after which all later calls fail, such as an illegal access."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.AcceleratorError) or str(error).startswith(_LOST):
            first = str(error).partition("\n")[0]
            raise DeviceLost(f"the device failed: {first}") from error
        raise


def _pending(values: Tensor) -> Callable[[], Vectors]:
    """A function that waits for values on a device."""
    if values.device.type != "cuda":
        return lambda: _array(values)
    copied = values.to("cpu", non_blocking=True)
    done = torch.cuda.Event(blocking=True)
    done.record()

    def wait() -> Vectors:
        done.synchronize()
        return _array(copied)

    return wait


def _array(values: Tensor) -> Vectors:
    found: Vectors = values.cpu().numpy()
    return found


def _nothing(loaded: Loaded) -> Tensor:
    """Keys and values of two tokens that no sequence reads: a compiler takes sizes 0 and 1 for constant."""
    architecture = loaded.architecture
    shape = (len(architecture.attentions), 2, 2, architecture.key_heads, architecture.head_width)
    return torch.zeros(shape, device=loaded.device, dtype=loaded.weights["tokens.weight"].dtype)
