"""Causal models in a worker: prompts that share a prefix, and the parts of a model that must be computed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from breaks import next_rows, ones, zeros
from hypothesis import given
from hypothesis import strategies as st
from test_goldens_can_fail import only

import ggufs
from rerankd.backends.openvino.causal import CausalModel
from rerankd.backends.worker import prefixes
from rerankd.backends.worker.methods import Logits
from rerankd.backends.worker.prefixes import Prefix, PrefixCache, Prefixing
from rerankd.backends.worker.protocol import InvalidBatch
from rerankd.backends.worker.scorer import Scorer
from rerankd.errors import InputTooLong, ModelFileError
from rerankd.scoring.engine_input import Ids, Input, Question
from support import GOLDEN, golden

# OpenVINO in float32 comes within 5e-6.
BOUND = 2e-5
SEEN = 100 * BOUND


def ids(values: Sequence[int]) -> Ids:
    return np.array(values, np.int32)


class Sums(Prefixing):
    """A model whose score is the sum of all ids, each times its position. A prefix keeps those numbers."""

    about, rows, tokens_a_pass = "", 1000, 8

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []
        self.prefixes = PrefixCache()

    def whole(self, count: int, longest: int) -> int:
        return count

    def empty(self, tokens: int) -> Prefix:
        return Prefix(np.zeros((1, tokens, 1, 1), np.float32), 0)

    def extend(self, prefix: Prefix, own: Any) -> Prefix:
        start, end = prefix.tokens, prefix.tokens + len(own)
        self.calls.append(("prefix", start, len(own)))
        prefix.held[0, start:end, 0, 0] = own * np.arange(start, end)
        return Prefix(prefix.held, end)

    def forward(self, prefix: Prefix, own: Any, lengths: Any) -> Any:
        start, base = prefix.tokens, prefix.held[:, : prefix.tokens].sum()
        self.calls.append(("score", start, own.size))
        places = np.arange(own.shape[1])
        return base + (own * (start + places) * (places < lengths[:, None])).sum(1).astype(np.float32)


def expected(one: Input) -> float:
    return float((one.whole * np.arange(len(one.whole))).sum())


some = st.lists(st.integers(0, 3), max_size=20).map(ids)
questions = st.builds(Question, st.just(""), before=some, after=st.just(ids([7])), head=some)


@given(st.lists(st.tuples(questions, st.lists(some, min_size=1, max_size=5)), min_size=1, max_size=3))
def test_every_input_is_scored_whatever_it_shares_with_others(made: list[tuple[Question, list[Ids]]]) -> None:
    inputs = [
        Input(question, "", np.concatenate((question.head, own)) if at % 2 else own, 0)
        for question, owns in made
        for at, own in enumerate(owns)
    ]
    scorer = Scorer(Sums(), 64, Logits())
    for _ in range(2):
        assert scorer.score(inputs) == [expected(one) for one in inputs]


def prompts(question: Sequence[int], *documents: Sequence[int]) -> list[Input]:
    """Prompts with a system message of 20 tokens, a question of 20 and a document."""
    head = ids([*question] * 20)
    asked = Question("", before=ids([1] * 20), after=ids([9]), head=np.append(head, ids([5])))
    return [Input(asked, "", np.concatenate((head, ids(own))), 0) for own in documents]


def test_the_prefix_of_a_question_is_computed_once_and_kept_across_batches() -> None:
    network = Sums()
    network.tokens_a_pass = 64
    scorer = Scorer(network, 512, Logits())
    scorer.score(prompts([2], [3, 4], [3, 3], [5, 6]))
    assert network.calls == [("prefix", 0, 20), ("prefix", 20, 20), ("score", 40, 9)]
    scorer.score(prompts([2], [8]))
    assert network.calls[3:] == [("score", 40, 2)]
    scorer.score(prompts([3], [8]))
    assert network.calls[4:] == [("prefix", 20, 20), ("score", 40, 2)], "the system message is known"


def test_a_long_text_is_computed_in_passes_of_limited_size() -> None:
    network = Sums()
    (one,) = prompts([2], [4] * 30)
    assert Scorer(network, 512, Logits()).score([one]) == [expected(one)]
    assert max(tokens for *_, tokens in network.calls) <= network.tokens_a_pass


def test_a_document_that_changes_the_end_of_the_question_shares_less() -> None:
    (one,) = prompts([2], [3])
    other = Input(one.question, "", ids([2] * 10 + [4] * 10), 0)
    assert [each.shared for each in prefixes.readings([one, other])] == [40, 30]
    scorer = Scorer(Sums(), 512, Logits())
    assert scorer.score([one, other]) == [expected(one), expected(other)]


def test_the_cache_of_prefixes_is_bounded_and_keeps_the_latest() -> None:
    def prefix(tokens: int) -> Prefix:
        return Prefix(np.zeros((tokens, 2, 1, 4), np.float32), tokens)

    cache = PrefixCache(limit_bytes=prefix(10).held.nbytes)
    for at in range(3):
        cache.put([ids([at])], prefix(5))
    assert [cache.get([ids([at])]) is not None for at in range(3)] == [False, True, True]
    cache.put([ids([4])], prefix(100))
    assert cache.get([ids([4])]) is not None, "a prefix that is larger than the cache is kept alone"
    assert cache.size_bytes == prefix(100).held.nbytes


def test_inputs_that_the_model_can_not_read_are_rejected() -> None:
    scorer = Scorer(Sums(), 41, Logits())
    with pytest.raises(InputTooLong, match="42 tokens, and max_length is 41"):
        scorer.score(prompts([2], [3]))
    with pytest.raises(InvalidBatch, match="outside the model's vocabulary"):
        scorer.score([Input(Question(""), "", ids([1000]), 0)])
    with pytest.raises(InvalidBatch, match="no tokens"):
        scorer.score([Input(Question(""), "", ids([]), 0)])


def sampled(name: str, *, shared: int) -> tuple[list[Input], Any]:
    """Every fourth golden prompt, of which the first tokens are given as the part that all share."""
    cases = [case for case in golden(name)["cases"] if case["fits"]][::4]
    inputs = []
    for case in cases:
        whole = ids(case["ids"])
        question = Question("", before=whole[: shared // 2], head=whole[shared // 2 : shared])
        inputs.append(Input(question, "", whole[shared // 2 :], len(whole)))
    return inputs, np.array([case["raw"] for case in cases])


def scorer_of(path: Path, name: str, labels: Sequence[int] | None = None, **more: Any) -> Scorer:
    """A scorer for the labels of a golden model, or for others; () for its head."""
    labels = golden(name)["label_ids"] if labels is None else labels
    return Scorer(CausalModel(path, labels, threads=1, **more), 512, Logits())


def distance(path: Path, name: str, shared: int = 60, labels: Sequence[int] | None = None) -> float:
    """The largest difference of a file's scores from the golden ones."""
    inputs, wanted = sampled(name, shared=shared)
    return float(np.abs(np.array(scorer_of(path, name, labels).score(inputs)) - wanted).max())


@pytest.mark.parametrize("name", ["qwen3-headed", "qwen2-labels", "gemma-yes"])
def test_a_score_does_not_depend_on_the_length_of_the_shared_prefix(name: str) -> None:
    path = GOLDEN / f"{name}.gguf"
    for shared in (0, 2, 33, 64, 90):
        assert distance(path, name, shared) < BOUND


def test_a_text_in_several_passes_has_the_same_score() -> None:
    model = CausalModel(GOLDEN / "qwen3-headed.gguf", golden("qwen3-headed")["label_ids"], threads=1)
    model.tokens_a_pass = 24
    inputs, wanted = sampled("qwen3-headed", shared=60)
    assert Scorer(model, 512, Logits()).score(inputs) == pytest.approx(wanted, abs=BOUND)


BREAKS = {
    "the rope base": ("qwen3-headed", {"keys": {"qwen3.rope.freq_base": 500000.0}}),
    "the norms' epsilon": ("qwen3-headed", {"keys": {"qwen3.attention.layer_norm_rms_epsilon": 1e-3}}),
    "the norm of queries": ("qwen3-headed", only("attn_q_norm", ones)),
    "the norm of keys": ("qwen3-headed", only("attn_k_norm", ones)),
    "the norm before attention": ("qwen3-headed", only("attn_norm", ones)),
    "the norm before the MLP": ("qwen3-headed", only("ffn_norm", ones)),
    "the last norm": ("qwen3-headed", only("output_norm", ones)),
    "the heads' order": ("qwen3-headed", only("attn_q.weight", lambda held: np.roll(held, 32, axis=0))),
    "the gate": ("qwen3-headed", only("ffn_gate", next_rows)),
    "the query's bias": ("qwen2-labels", only("attn_q.bias", zeros)),
    "the value's bias": ("qwen2-labels", only("attn_v.bias", zeros)),
    "Gemma: the norms' epsilon": ("gemma-yes", {"keys": {"gemma.attention.layer_norm_rms_epsilon": 1e-3}}),
    "Gemma: the heads' order": ("gemma-yes", only("attn_q.weight", lambda held: np.roll(held, 16, axis=0))),
    "Gemma: the norm before attention": ("gemma-yes", only("attn_norm", ones)),
    "Gemma: the norm before the MLP": ("gemma-yes", only("ffn_norm", ones)),
    "Gemma: the last norm": ("gemma-yes", only("output_norm", ones)),
    "Gemma: the gate": ("gemma-yes", only("ffn_gate", next_rows)),
}


@pytest.mark.parametrize("what", BREAKS)
def test_a_broken_part_of_a_file_is_seen(what: str, tmp_path: Path) -> None:
    name, change = BREAKS[what]
    broken = ggufs.rewrite(GOLDEN / f"{name}.gguf", tmp_path / "broken.gguf", **change)  # type: ignore[arg-type]
    assert distance(broken, name) > SEEN


def test_a_prefix_of_another_query_or_one_token_late_is_seen() -> None:
    model = CausalModel(GOLDEN / "qwen3-headed.gguf", golden("qwen3-headed")["label_ids"], threads=1)
    (one, *_), (wanted, *_) = sampled("qwen3-headed", shared=90)
    whole = one.whole.astype(np.int64)
    own, lengths = whole[None, 90:], np.array([len(whole) - 90])
    right = model.extend(model.empty(90), whole[:90])
    assert model.forward(right, own, lengths)[0] == pytest.approx(wanted, abs=BOUND)
    other = whole[:90].copy()
    other[80:90] = whole[70:80]
    held = right.held[:, :90]

    def moved(rows: Any) -> Prefix:
        return Prefix(np.pad(rows, ((0, 0), (0, 96 - rows.shape[1]), (0, 0), (0, 0))), rows.shape[1])

    wrong = [
        model.extend(model.empty(90), other),
        *(moved(rows) for rows in (held[:, 1:], held[:, :-1])),
        right._replace(held=right.held[::-1]),
    ]
    for one in wrong:
        assert abs(model.forward(one, own, lengths)[0] - wanted) > SEEN


def test_a_long_text_is_computed_in_passes_that_become_shorter() -> None:
    network = Sums()
    network.tokens_a_pass = 1024
    (one,) = prompts([2], [4] * 6000)
    found = Scorer(network, 8192, Logits()).score([one])
    assert found == pytest.approx([expected(one)], rel=1e-6)
    parts = [(before, tokens) for _, before, tokens in network.calls]
    assert max(tokens for _, tokens in parts) == 1024
    assert all(tokens <= 128 or tokens * (before + 1024) <= 2**21 for before, tokens in parts[:-1])


def test_one_label_is_scored_by_its_logit() -> None:
    first, second = golden("qwen3-headed")["label_ids"]
    inputs, wanted = sampled("qwen3-headed", shared=60)
    path = GOLDEN / "qwen3-headed.gguf"
    alone = [np.array(scorer_of(path, "qwen3-headed", [label]).score(inputs)) for label in (first, second)]
    assert alone[0] - alone[1] == pytest.approx(wanted, abs=2 * BOUND)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda held: {name: one for name, one in held.items() if name != "blk.1.attn_k_norm.weight"},
            "lacks",
        ),
        (lambda held: {**held, "blk.0.attn_q.bias": np.zeros(128, np.float32)}, "unknown tensor"),
        (lambda held: {**held, "rope_freqs.weight": np.ones(16, np.float32)}, "unknown tensor"),
    ],
)
def test_a_file_with_other_tensors_is_refused(change: Any, says: str, tmp_path: Path) -> None:
    path = ggufs.rewrite(GOLDEN / "qwen3-headed.gguf", tmp_path / "other.gguf", tensors=change)
    with pytest.raises(ModelFileError, match=says):
        CausalModel(path, [1, 2], threads=1)


def write_q8(path: Path, *, dequantised: bool) -> Path:
    """A copy of a golden model with matrices in Q8_0, or in F32 with the same values."""
    kind = gguf.GGMLQuantizationType.Q8_0
    reader = gguf.GGUFReader(GOLDEN / "qwen3-headed.gguf")
    out = gguf.GGUFWriter(path, "qwen3")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            inner = field.types[1] if len(field.types) > 1 else None
            out.add_key_value(name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        data = np.array(tensor.data)
        if data.ndim > 1:
            data = gguf.quants.quantize(data, kind)
            if dequantised:
                out.add_tensor(tensor.name, gguf.quants.dequantize(data, kind))
            else:
                out.add_tensor(tensor.name, data, raw_dtype=kind)
        else:
            out.add_tensor(tensor.name, data)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def test_weights_in_8_bits_are_kept_without_loss(tmp_path: Path) -> None:
    inputs, golden_values = sampled("qwen3-headed", shared=60)
    found = [
        np.array(scorer_of(write_q8(tmp_path / f"{way}.gguf", dequantised=way), "qwen3-headed").score(inputs))
        for way in (False, True)
    ]
    assert np.abs(found[0] - found[1]).max() < BOUND
    assert 1e-4 < np.abs(found[0] - golden_values).max() < 0.1, "rounding to 8 bits changes scores a little"


def test_bf16_scores_are_near(tmp_path: Path) -> None:
    inputs, wanted = sampled("qwen3-headed", shared=60)
    scorer = scorer_of(GOLDEN / "qwen3-headed.gguf", "qwen3-headed", precision="bf16")
    assert scorer.score(inputs) == pytest.approx(wanted, abs=0.1)
    again = [scorer.score([one])[0] for one in itertools.islice(inputs, 8)]
    assert again == pytest.approx(scorer.score(inputs)[:8], abs=1e-3)
