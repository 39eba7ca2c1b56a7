"""Prefixes that inputs share, and attention, on PyTorch.

Needs PyTorch: `make test-torch`.
"""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="no PyTorch here: make test-torch")

from test_torch_networks import BOUND, CPU, SEEN, computed, pairs, started, values, worst

from rerankd.backends.torch import attention
from rerankd.backends.torch.batch import PackedBatch
from rerankd.backends.torch.packing import NO_PREFIX, Tokens, pack
from rerankd.backends.torch.prefixes import Prefix, PrefixCache
from rerankd.backends.worker.passes import Reading
from support import GOLDEN, golden


def test_the_prefix_of_another_query_is_noticed() -> None:
    """A cache that mixed up prefixes would change the values."""
    path = GOLDEN / "qwen3-headless.gguf"
    network = started(path, golden("qwen3-headless")["label_ids"])
    readings, wanted = pairs("qwen3-headless", path, 40)
    values(network, readings)
    held = network.prefixes._held
    keys = [*held]
    assert len(keys) >= 1
    for key in keys:
        kept = held[key]
        held[key] = Prefix(torch.stack((kept.layers[:, 0].roll(1, 1), kept.layers[:, 1]), 1))
    assert np.abs(values(network, readings) - wanted).max() > SEEN


def test_prefixes_are_bounded_by_bytes_and_the_newest_are_kept() -> None:
    def prefix(tokens: int) -> Prefix:
        return Prefix(torch.zeros(1, 2, tokens, 1, 2))

    cache = PrefixCache(most_bytes=3 * prefix(4).layers.nbytes)
    for key in (b"a", b"b", b"c"):
        cache.put(key, prefix(4))
    assert cache.get(b"a") is not None
    cache.put(b"d", prefix(4))
    assert cache.get(b"b") is None and cache.get(b"a") is not None and cache.get(b"d") is not None
    cache.put(b"large", prefix(400))
    assert cache.size_bytes == 0 and cache.get(b"large") is None


def test_a_prefix_that_is_not_kept_is_still_used() -> None:
    path = GOLDEN / "qwen3-headless.gguf"
    network = started(path, golden("qwen3-headless")["label_ids"])
    network.prefixes = PrefixCache(0)
    assert worst(network, *pairs("qwen3-headless", path, 40)) < BOUND


def test_a_kept_prefix_serves_other_passes_of_the_query() -> None:
    """Also a single document, whose pass alone does not tell what the query's documents share."""
    path = GOLDEN / "qwen3-headless.gguf"
    network = started(path, golden("qwen3-headless")["label_ids"])
    readings, wanted = pairs("qwen3-headless", path, 40)
    values(network, readings)
    held = network.prefixes.size_bytes
    assert held > 0
    again = [one._replace(shared=44) for one in readings]
    assert worst(network, again, wanted) < BOUND
    assert worst(network, [one._replace(shared=0) for one in readings], wanted) < BOUND
    assert network.prefixes.size_bytes == held


def test_an_input_that_is_all_prefix_has_the_same_value() -> None:
    path = GOLDEN / "qwen3-headless.gguf"
    network = started(path, golden("qwen3-headless")["label_ids"])
    ids = np.arange(30, dtype=np.int32)
    apart = computed(network, [Reading(ids, 30)])
    assert computed(network, [Reading(ids, 30, 30), Reading(ids, 30, 20)]) == pytest.approx(
        np.repeat(apart, 2, 0), abs=BOUND
    )


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("lengths", [(5,), (5, 5), (1, 9, 4)])
@pytest.mark.parametrize("has_prefix", [True, False])
def test_attention_reads_what_it_should(
    causal: bool, window: int | None, lengths: tuple[int, ...], has_prefix: bool
) -> None:
    """Compared with a softmax that is written out, for each query on its own."""
    made = torch.Generator().manual_seed(1)
    total, before = sum(lengths), 6 if has_prefix else 0
    q = torch.randn(total, 4, 8, generator=made)
    k, v = (torch.randn(total, 2, 8, generator=made) for _ in range(2))
    prefix = tuple(torch.randn(before, 2, 8, generator=made) for _ in range(2))
    place = 0 if has_prefix else NO_PREFIX
    sequences = [Tokens(np.zeros(one, np.int32), one, place) for one in lengths]
    batch = PackedBatch(pack(sequences, (before,) if has_prefix else (), "all"), CPU)
    keys, values = k, v
    if batch.key_index is not None:
        keys, values = (
            attention.with_prefixes(own, first, batch.key_index)
            for own, first in zip((k, v), prefix, strict=True)
        )
    found = attention.attend(q, keys, values, batch, attention.Attention(causal, window))
    start = 0
    for length in lengths:
        keys, others = (
            torch.cat((first, one[start : start + length])) for first, one in zip(prefix, (k, v), strict=True)
        )
        for at in range(length):
            own = before + at
            seen = [
                key
                for key in range(before + length)
                if (not causal or key <= own) and (window is None or abs(key - own) <= window)
            ]
            for head in range(4):
                products = keys[seen, head // 2] @ q[start + at, head] / 8**0.5
                wanted = products.softmax(0) @ others[seen, head // 2]
                got = found[start + at].view(4, 8)[head]
                assert torch.allclose(got, wanted, atol=1e-5)
        start += length
