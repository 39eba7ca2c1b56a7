"""PyTorch: packing, budgets and the offer. Nothing here needs PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankd.backends.base import EngineSpec, Rank
from rerankd.backends.torch import budget, model_code, support, survey
from rerankd.backends.torch.backend import TorchBackend, TorchOffer
from rerankd.backends.torch.devices import Device, Survey
from rerankd.backends.torch.options import TorchOptions
from rerankd.backends.torch.packing import NO_PREFIX, Tokens, pack, padded_passes, passes, rounded
from rerankd.domain import Normalization, Recipe
from rerankd.formats import model_files
from support import GOLDEN

CPU = Device("cpu", "a CPU")
H100 = Device("cuda:0", "H100", 80 * 2**30, True, (9, 0))
T4 = Device("cuda:1", "T4", 16 * 2**30, False, (7, 5))
BACKEND = TorchBackend()
HEAD = Recipe("cross_encoder", 512, Normalization("sigmoid"), pooling="rank")
EMBEDDING = Recipe("embedding", 128, Normalization("affine"), pooling="mean")
CAUSAL = Recipe(
    "causal_lm", 512, Normalization("sigmoid"), template="{query}{document}", labels=("yes", "no")
)


def tokens(*ids: int, second: int | None = None, prefix: int = NO_PREFIX) -> Tokens:
    return Tokens(np.array(ids, np.int32), len(ids) if second is None else second, prefix)


def test_sequences_are_packed_without_padding() -> None:
    made = pack([tokens(5, 6, 7, second=1), tokens(8)], (), "first")
    assert made.token_ids.tolist() == [5, 6, 7, 8]
    assert made.positions.tolist() == [0, 1, 2, 0]
    assert made.types.tolist() == [0, 1, 1, 0]
    assert made.offsets.tolist() == made.key_offsets.tolist() == [0, 3, 4]
    assert made.key_index is None
    assert (made.longest, made.longest_key) == (16, 16)
    assert made.rows is not None and made.rows.tolist() == [0, 3] and made.row_counts.tolist() == [1, 1]
    last = pack([tokens(5, 6, 7), tokens(8)], (), "last").rows
    assert last is not None and last.tolist() == [2, 3]
    every = pack([tokens(5, 6, 7), tokens(8)], (), "all")
    assert every.rows is None and every.row_counts.tolist() == [3, 1]


def test_the_head_reads_the_tokens_that_a_sequence_names_or_all_of_it() -> None:
    named = tokens(5, 6, 7)._replace(wanted=np.array([2, 0], np.int32))
    made = pack([named, tokens(8, 9)], (), "wanted")
    assert made.rows is not None and made.rows.tolist() == [2, 0, 3, 4]
    assert made.row_counts.tolist() == [2, 2]
    behind = pack([tokens(1, 2), named, tokens(8, 9)], (), "wanted", prefixes=1)
    assert behind.rows is not None and behind.rows.tolist() == [4, 2, 5, 6]
    assert behind.row_counts.tolist() == [2, 2]
    every = pack([tokens(5, 6, 7), tokens(8)], (), "wanted")
    assert every.rows is None and every.row_counts.tolist() == [3, 1]


def test_a_prefix_in_the_row_has_its_keys_there_and_the_head_does_not_read_it() -> None:
    sequences = [tokens(1, 2, 3), tokens(7, prefix=1), tokens(8, prefix=0), tokens(9)]
    made = pack(sequences, (2,), "last", prefixes=1)
    assert made.positions.tolist() == [0, 1, 2, 3, 2, 0]
    # The keys of the kept prefix are 0 and 1, those of the row 2 to 7.
    assert made.key_index is not None
    assert made.key_index.tolist() == [2, 3, 4, 2, 3, 4, 5, 0, 1, 6, 7]
    assert made.key_offsets.tolist() == [0, 3, 7, 10, 11]
    assert made.rows is not None and made.rows.tolist() == [3, 4, 5] and made.row_counts.tolist() == [1, 1, 1]
    first, every = (pack(sequences, (2,), rows, prefixes=1) for rows in ("first", "all"))
    assert first.rows is not None and first.rows.tolist() == [3, 4, 5]
    assert every.rows is not None and every.rows.tolist() == [3, 4, 5]


def test_positions_continue_after_the_prefix_whose_keys_come_first() -> None:
    made = pack([tokens(5, 6, prefix=1), tokens(7), tokens(8, prefix=0), tokens(9, prefix=1)], (2, 3), "last")
    assert made.positions.tolist() == [3, 4, 0, 2, 3]
    assert made.offsets.tolist() == [0, 2, 3, 4, 5]
    assert made.key_offsets.tolist() == [0, 5, 6, 9, 13]
    # The keys of the two prefixes are 0, 1 and 2, 3, 4; those of the row 5 to 9.
    assert made.key_index is not None
    assert made.key_index.tolist() == [2, 3, 4, 5, 6, 7, 0, 1, 8, 2, 3, 4, 9]


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(-1, 2)), min_size=1, max_size=20))
def test_each_sequence_reads_its_prefix_and_itself(sequences: list[tuple[int, int]]) -> None:
    lengths = (4, 1, 7)
    made = pack([Tokens(np.zeros(own, np.int32), own, prefix) for own, prefix in sequences], lengths, "all")
    starts, count = [0, 4, 5], sum(lengths)
    wanted, at = [], count
    for own, prefix in sequences:
        if prefix >= 0:
            wanted += range(starts[prefix], starts[prefix] + lengths[prefix])
        wanted += range(at, at + own)
        at += own
    assert made.key_index is not None and made.key_index.tolist() == wanted
    assert made.longest >= max(own for own, _ in sequences)


def test_lengths_are_rounded_to_few_values() -> None:
    assert [rounded(one) for one in (1, 16, 17, 64, 65)] == [16, 16, 32, 64, 128]


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 1000))
def test_a_pass_holds_at_most_its_tokens(lengths: list[int], most: int) -> None:
    for divide in (passes, padded_passes):
        found = divide(lengths, most)
        assert sorted(at for one in found for at in one) == list(range(len(lengths)))
        for one in found:
            assert len(one) == 1 or sum(lengths[at] for at in one) <= most


def test_the_tokens_of_a_pass_follow_from_the_free_memory() -> None:
    a_token = budget.bytes_a_token(1024, 4096, 2)
    assert budget.on_card(0, a_token) == budget.LEAST
    small, large = (budget.on_card(size, a_token) for size in (2**28, 2**29))
    assert 0 < small < large < budget.on_card(2**40, a_token) == budget.MOST_ON_CARD


def spec(name: str, recipe: Recipe, **more: Any) -> EngineSpec:
    metadata = model_files.read(GOLDEN / name)
    return EngineSpec(name, GOLDEN / name, recipe, {}, metadata=metadata, **more)


def offer(one: EngineSpec, *seen: Device, **options: Any) -> TorchOffer:
    found = BACKEND.offer(one, TorchOptions(**options), Survey("2.14", seen, cache=Path("/data/cache/torch")))
    assert isinstance(found, TorchOffer)
    return found


def argument(argv: Sequence[str], flag: str) -> str:
    return argv[list(argv).index(flag) + 1]


def test_on_a_cpu_other_engines_come_first_and_on_a_gpu_it_does() -> None:
    model = spec("xlmr-head", HEAD)
    on_cpu, on_card = offer(model, CPU), offer(model, H100, CPU)
    assert (on_cpu.rank, on_cpu.on_cpu) == (Rank.LAST_ON_CPU, True) and Rank.LAST_ON_CPU < Rank.CPU
    assert (on_card.rank, on_card.on_cpu) == (Rank.GPU, False)
    assert on_card.policy.tokens > on_cpu.policy.tokens
    assert offer(model, H100, CPU, device="cpu").on_cpu
    assert on_cpu.memory_bytes < 2**30


def test_the_worker_gets_its_device_precision_and_labels() -> None:
    model = spec("qwen3-headless.gguf", CAUSAL, threads=3)
    metadata = model.metadata
    assert metadata is not None
    found = offer(model, H100, T4, CPU)
    argv = BACKEND.launch(found, (), ("gpu1",), Path("/s")).argv
    assert argument(argv, "--device") == "cuda:1"
    assert argument(argv, "--precision") == "bf16" and {"--varlen", "--compile"} <= {*argv}
    at = list(argv).index("--labels")
    assert argv[at + 1 : at + 3] == [str(metadata.token_id("yes")), str(metadata.token_id("no"))]
    eager, padded, float32 = BACKEND.steps(found, ())
    assert "--compile" not in BACKEND.launch(found, (eager,), (), Path("/s")).argv
    assert "--varlen" not in BACKEND.launch(found, (eager, padded), (), Path("/s")).argv
    safest = BACKEND.launch(found, (eager, padded, float32), (), Path("/s"))
    assert argument(safest.argv, "--precision") == "f32"
    assert {
        "HF_HUB_OFFLINE": "1",
        "TORCHINDUCTOR_CACHE_DIR": "/data/cache/torch",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "OMP_NUM_THREADS": "3",
    }.items() <= safest.environment.items()
    assert BACKEND.identity(found, ()) != BACKEND.identity(found, (float32,))
    assert BACKEND.steps(offer(model, CPU), ()) == ()


def test_half_precision_is_compared_with_float32_on_the_cpu() -> None:
    model = spec("xlmr-head", HEAD)
    reference = BACKEND.reference(model, offer(model, H100, CPU))
    assert reference is not None
    assert (reference.device.name, reference.arithmetic.precision) == ("cpu", "f32")
    assert BACKEND.reference(model, offer(model, CPU)) is None


@pytest.mark.parametrize(
    ("name", "recipe", "reason"),
    [
        ("xlmr-head.gguf", CAUSAL, "bert is not a causal model"),
        (
            "bert-embedder.gguf",
            Recipe("embedding", 128, EMBEDDING.normalization, pooling="none"),
            "pooling none",
        ),
        (
            "qwen3-headless.gguf",
            Recipe("causal_lm", 512, HEAD.normalization, template="{document}", labels=("yes", "in between")),
            "a label is not a single token",
        ),
    ],
)
def test_what_is_not_understood_is_refused(name: str, recipe: Recipe, reason: str) -> None:
    refusal = support.refused(recipe, model_files.read(GOLDEN / name))
    assert refusal is not None and reason in refusal.reason


def test_an_architecture_without_a_file_embeds_nothing() -> None:
    metadata = replace(model_files.read(GOLDEN / "bert-embedder.gguf"), architecture="neo-bert")
    refusal = support.refused(EMBEDDING, metadata)
    assert refusal is not None and "the architecture neo-bert" in refusal.reason


def test_a_cross_encoder_without_an_architecture_file_is_for_the_reference() -> None:
    known = spec("deberta-v3", HEAD)
    assert known.metadata is not None
    unknown = replace(known, metadata=replace(known.metadata, library="own code"))
    found = offer(unknown, H100, CPU, trust_remote_code=True)
    assert found.is_reference
    argv = BACKEND.launch(found, (), (), Path("/s")).argv
    assert {"--reference", "--trust-code"} <= {*argv} and "--varlen" not in argv
    assert not offer(spec("xlmr-head", HEAD), H100, CPU).is_reference
    assert "--trust-code" not in BACKEND.launch(offer(spec("gte", HEAD), CPU), (), (), Path("/s")).argv


def test_code_and_pickled_weights_in_a_models_files_are_named() -> None:
    own = {"auto_map": {"AutoModel": "mine.Model"}}
    library = [{"type": "sentence_transformers.models.Transformer"}]
    assert model_code.custom({}, library) == model_code.custom({"auto_map": {}}, None) == ""
    assert model_code.custom(own, None) == "mine.Model"
    assert model_code.custom({}, [*library, {"type": "mine.Pooling"}]) == "mine.Pooling"
    assert model_code.custom({}, [{}]) and model_code.custom({}, ["text"])
    assert model_code.pickled(["model.safetensors", "pytorch_model.bin", "1_Dense/config.json"]) == ""
    assert (
        model_code.pickled(["model.safetensors", "1_Dense/pytorch_model.bin"]) == "1_Dense/pytorch_model.bin"
    )


def test_all_architectures_of_the_table_have_a_file() -> None:
    """architectures/__init__.py can't be imported here: its modules import PyTorch."""
    text = (Path(survey.__file__).parent / "architectures" / "__init__.py").read_text()
    for name in support.ARCHITECTURES:
        assert f'"{name}": ' in text
    assert text.count('": ') == len(support.ARCHITECTURES)
