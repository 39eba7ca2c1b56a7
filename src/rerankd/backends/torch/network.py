"""A loaded model: token ids in, one row of outputs per input out (see worker/scorer.py, Network)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rerankd.backends.torch import budget
from rerankd.backends.torch.architecture import Architecture, pooled_as
from rerankd.backends.torch.attention import KeysValues, attend
from rerankd.backends.torch.batch import PackedBatch
from rerankd.backends.torch.heads import Head
from rerankd.backends.torch.layers import Named, Rotation, rotation
from rerankd.backends.torch.packing import NO_PREFIX, Tokens, pack, padded_passes, passes
from rerankd.backends.torch.prefixes import SHORTEST, Prefix, PrefixCache
from rerankd.backends.torch.steps import Before, Steps
from rerankd.backends.worker.passes import Pause, Pending, Reading, Vectors, never
from rerankd.scoring.engine_input import Ids


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
    `prefix_bytes` bounds the memory for the beginnings of prompts. `steps` may be replaced at any time.
    """

    passes_ahead = 1

    def __init__(
        self,
        loaded: Loaded,
        about: str,
        tokens_a_pass: int,
        *,
        uses_varlen: bool = False,
        prefix_bytes: int = 2**28,
    ) -> None:
        self.about = about
        self.rows = loaded.rows
        self.shares_prefix = loaded.architecture.shares_prefix
        self.tokens_a_pass = tokens_a_pass
        self.prefixes = PrefixCache(prefix_bytes)
        self.steps = Steps(loaded.architecture)
        self._loaded = loaded
        self._uses_varlen = uses_varlen

    def passes(self, readings: Sequence[Reading]) -> list[list[int]]:
        divide = passes if self._uses_varlen else padded_passes
        return divide([len(one.ids) for one in readings], self.tokens_a_pass)

    def start(self, readings: Sequence[Reading], pause: Pause = never) -> Pending:
        """See scorer.Network. Raises torch.OutOfMemoryError if the memory does not suffice for one input."""
        try:
            return self._started(readings)
        except torch.OutOfMemoryError:
            if len(readings) == 1:
                raise
        self.tokens_a_pass = max(self.tokens_a_pass // 2, budget.LEAST)
        self.prefixes.clear()
        if self._loaded.device.type == "cuda":
            torch.cuda.empty_cache()
        middle = len(readings) // 2
        parts = [self.start(readings[:middle], pause), self.start(readings[middle:], pause)]
        return lambda: np.concatenate([wait() for wait in parts])

    def _started(self, readings: Sequence[Reading]) -> Pending:
        with torch.inference_mode():
            starts = self._starts(readings)
            prefixes = self._prefixes(dict.fromkeys(start for start in starts if start))
            places = {start: at for at, start in enumerate(prefixes)}
            sequences = [
                Tokens(
                    one.ids[len(start) // one.ids.itemsize :],
                    one.second - len(start) // one.ids.itemsize,
                    places.get(start, NO_PREFIX),
                )
                for one, start in zip(readings, starts, strict=True)
            ]
            return _pending(self._outputs(sequences, [*prefixes.values()]))

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

    def _prefixes(self, starts: Iterable[bytes]) -> dict[bytes, Prefix]:
        """The keys and values of these starts, computed where they are not kept."""
        found = {start: self.prefixes.get(start) for start in starts}
        new = [start for start, prefix in found.items() if prefix is None]
        ids = [np.frombuffer(start, np.int32) for start in new]
        for places in self.passes([Reading(one, len(one)) for one in ids]):
            made = self.computed_prefixes([ids[at] for at in places])
            for at, prefix in zip(places, made, strict=True):
                found[new[at]] = prefix
                self.prefixes.put(new[at], prefix)
        return {start: prefix for start, prefix in found.items() if prefix is not None}

    def computed_prefixes(self, ids: Sequence[Ids], steps: Steps | None = None) -> list[Prefix]:
        """The keys and values of these token ids; `steps` as in `states`."""
        lengths = [len(one) for one in ids]
        batch = self._batch([Tokens(one, len(one)) for one in ids], ())
        *_, kept = self._mixed(batch, (), steps or self.steps, keeps=True)
        apart = [tuple(one.split(lengths) for one in pair) for pair in kept]
        # Clones, because a view would keep the keys of all prefixes in memory.
        return [
            Prefix(length, tuple((keys[at].clone(), values[at].clone()) for keys, values in apart))
            for at, length in enumerate(lengths)
        ]

    def states(
        self, sequences: Sequence[Tokens], prefixes: Sequence[Prefix], steps: Steps | None = None
    ) -> Tensor:
        """The final states [R, width] that the head reads, computed by `steps` or the network's own."""
        return self._states(self._batch(sequences, prefixes), prefixes, steps or self.steps)

    def _outputs(self, sequences: Sequence[Tokens], prefixes: Sequence[Prefix]) -> Tensor:
        """The head's values [N, 1], or embeddings [N, width], on the device."""
        batch = self._batch(sequences, prefixes)
        return self._loaded.head(self._states(batch, prefixes, self.steps), batch)

    def _states(self, batch: PackedBatch, prefixes: Sequence[Prefix], steps: Steps) -> Tensor:
        loaded = self._loaded
        x, mixed, _ = self._mixed(batch, prefixes, steps)
        if batch.rows is not None:  # after the last attention, only the tokens that the head reads
            x, mixed = x[batch.rows], mixed[batch.rows]
        rows = loaded.architecture.finish(x, mixed, loaded.layers[-1])
        return loaded.architecture.final(rows, loaded.weights)

    def _batch(self, sequences: Sequence[Tokens], prefixes: Sequence[Prefix]) -> PackedBatch:
        arrays = pack(sequences, [one.length for one in prefixes], pooled_as(self._loaded.head.pooling))
        return PackedBatch(arrays, self._loaded.device, uses_varlen=self._uses_varlen)

    def _mixed(
        self, batch: PackedBatch, prefixes: Sequence[Prefix], steps: Steps, *, keeps: bool = False
    ) -> tuple[Tensor, Tensor, list[KeysValues]]:
        """The states before the last layer and what its attention returns; with `keeps`, also the keys and
        values of each layer."""
        loaded, kept = self._loaded, []
        x = loaded.architecture.embed(batch, loaded.weights)
        query, key, value = steps.first(x, loaded.layers[0], *self._reads(batch, prefixes, 0, x.dtype))
        for at, attention in enumerate(loaded.architecture.attentions):
            if keeps:
                kept.append((key, value))
            mixed = attend(query, key, value, batch, attention)
            if at + 1 < len(loaded.layers):
                read = self._reads(batch, prefixes, at + 1, x.dtype)
                x, (query, key, value) = steps.between(
                    x, mixed, loaded.layers[at], loaded.layers[at + 1], *read
                )
        return x, mixed, kept

    def _reads(
        self, batch: PackedBatch, prefixes: Sequence[Prefix], at: int, dtype: torch.dtype
    ) -> tuple[Rotation | None, Before | None]:
        """What layer `at` reads besides its states and weights: rotary positions, and keys of prefixes."""
        architecture = self._loaded.architecture
        base, factor = (one := architecture.attentions[at]).rotary_base, one.rotary_factor
        turned = base and batch.once(
            ("rotation", base, factor),
            lambda: rotation(batch.positions, architecture.head_width, base, dtype, factor),
        )
        if batch.key_index is None:
            return turned or None, None
        return turned or None, Before(*_joined([one.layers[at] for one in prefixes]), batch.key_index)


def _pending(values: Tensor) -> Pending:
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


def _joined(pairs: Sequence[KeysValues]) -> KeysValues:
    """Keys and values of one layer of several prefixes, one after the other."""
    if len(pairs) == 1:
        return pairs[0]
    return torch.cat([key for key, _ in pairs]), torch.cat([value for _, value in pairs])
