"""A loaded model: token ids in, one row of outputs per input out (see worker/scorer.py, Network)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rerankd.backends.torch import budget
from rerankd.backends.torch.architecture import Architecture, pooled_as
from rerankd.backends.torch.attention import KeysValues
from rerankd.backends.torch.batch import PackedBatch
from rerankd.backends.torch.heads import Head
from rerankd.backends.torch.layers import Named
from rerankd.backends.torch.packing import NO_PREFIX, Tokens, pack, padded_passes, passes
from rerankd.backends.torch.prefixes import SHORTEST, Prefix, PrefixCache
from rerankd.backends.worker.passes import Reading, Vectors


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
    `prefix_bytes` bounds the memory for the beginnings of prompts.
    """

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
        self.tokens_a_pass = tokens_a_pass
        self.prefixes = PrefixCache(prefix_bytes)
        self._loaded = loaded
        self._uses_varlen = uses_varlen

    def passes(self, lengths: Sequence[int]) -> list[list[int]]:
        divide = passes if self._uses_varlen else padded_passes
        return divide(lengths, self.tokens_a_pass)

    def compute(self, readings: Sequence[Reading]) -> Vectors:
        """See scorer.Network. Raises torch.OutOfMemoryError if the memory does not suffice for one input."""
        try:
            return self._compute(readings)
        except torch.OutOfMemoryError:
            if len(readings) == 1:
                raise
        self.tokens_a_pass = max(self.tokens_a_pass // 2, budget.LEAST)
        self.prefixes.clear()
        if self._loaded.device.type == "cuda":
            torch.cuda.empty_cache()
        middle = len(readings) // 2
        return np.concatenate((self.compute(readings[:middle]), self.compute(readings[middle:])))

    def _compute(self, readings: Sequence[Reading]) -> Vectors:
        with torch.inference_mode():
            starts = [self._start(one) for one in readings]
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
            values = self._outputs(sequences, [*prefixes.values()])
            found: Vectors = values.cpu().numpy()
            return found

    def _start(self, reading: Reading) -> bytes:
        """The ids at the start of an input whose keys and values are kept; empty for none.

        What the inputs of a pass share depends on the pass, so a prefix that is kept and nearly as long is
        preferred to a new one.
        """
        if not self._loaded.architecture.shares_prefix:
            return b""
        ids = reading.ids[:-1]  # the last token is computed, because its state is read
        wanted = min(reading.shared, len(ids))
        known = self.prefixes.longest(ids.tobytes())
        if len(known) // ids.itemsize + SHORTEST > wanted:
            return known
        return ids[:wanted].tobytes()

    def _prefixes(self, starts: Iterable[bytes]) -> dict[bytes, Prefix]:
        """The keys and values of these starts, computed where they are not kept."""
        found = {start: self.prefixes.get(start) for start in starts}
        new = [start for start, prefix in found.items() if prefix is None]
        ids = [np.frombuffer(start, np.int32) for start in new]
        for places in self.passes([len(one) for one in ids]):
            made = self._computed_prefixes([ids[at] for at in places])
            for at, prefix in zip(places, made, strict=True):
                found[new[at]] = prefix
                self.prefixes.put(new[at], prefix)
        return {start: prefix for start, prefix in found.items() if prefix is not None}

    def _computed_prefixes(self, ids: Sequence[np.ndarray[tuple[int], np.dtype[np.int32]]]) -> list[Prefix]:
        lengths = [len(one) for one in ids]
        batch = self._batch([Tokens(one, len(one)) for one in ids], ())
        _, kept = self._states(batch, ())
        apart = [tuple(one.split(lengths) for one in pair) for pair in kept]
        # Clones, because a view would keep the keys of all prefixes in memory.
        return [
            Prefix(length, tuple((keys[at].clone(), values[at].clone()) for keys, values in apart))
            for at, length in enumerate(lengths)
        ]

    def _outputs(self, sequences: Sequence[Tokens], prefixes: Sequence[Prefix]) -> Tensor:
        batch = self._batch(sequences, [one.length for one in prefixes])
        states, _ = self._states(batch, prefixes)
        loaded = self._loaded
        rows = loaded.architecture.final(states[batch.rows], loaded.weights)
        return loaded.head(rows, batch)

    def _batch(self, sequences: Sequence[Tokens], prefix_lengths: Sequence[int]) -> PackedBatch:
        arrays = pack(sequences, prefix_lengths, pooled_as(self._loaded.head.pooling))
        return PackedBatch(arrays, self._loaded.device, uses_varlen=self._uses_varlen)

    def _states(self, batch: PackedBatch, prefixes: Sequence[Prefix]) -> tuple[Tensor, list[KeysValues]]:
        """The states after the last layer, and the keys and values of each layer if they may be kept."""
        loaded, kept = self._loaded, []
        keeps = loaded.architecture.shares_prefix and not prefixes
        x = loaded.architecture.embed(batch, loaded.weights)
        for at, (kind, weights) in enumerate(zip(loaded.architecture.kinds, loaded.layers, strict=True)):
            before = _joined([one.layers[at] for one in prefixes])
            x, pair = loaded.architecture.layer(x, weights, batch, kind, before)
            if keeps:
                kept.append(pair)
        return x, kept


def _joined(pairs: Sequence[KeysValues]) -> KeysValues | None:
    """Keys and values of one layer of several prefixes, one after the other."""
    if not pairs:
        return None
    if len(pairs) == 1:
        return pairs[0]
    return torch.cat([key for key, _ in pairs]), torch.cat([value for _, value in pairs])
