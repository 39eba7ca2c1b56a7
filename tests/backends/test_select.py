"""Which backend is selected for a model and why the others are not, for recipes and kinds of machines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rerankd.backends import select
from rerankd.backends.base import Backend, Capabilities, EngineSpec, Offer, Rank
from rerankd.backends.llama.backend import LlamaBackend
from rerankd.backends.llama.binaries import Binaries, Binary
from rerankd.backends.llama.options import LlamaOptions
from rerankd.backends.openvino.backend import OpenVinoBackend, refused
from rerankd.backends.openvino.options import OpenVinoOptions
from rerankd.backends.safer_steps import OTHER_BACKEND
from rerankd.backends.select import Selection
from rerankd.backends.torch.backend import TorchBackend
from rerankd.backends.torch.devices import Device, Survey
from rerankd.backends.torch.options import TorchOptions
from rerankd.domain import Normalization, Recipe, Refusal
from rerankd.errors import ConfigError
from rerankd.formats.metadata import ModelMetadata
from rerankd.machine import Gpu
from rerankd.serving import run_self_test

OPENVINO, LLAMA = OpenVinoBackend(), LlamaBackend()
HEAD = Recipe("cross_encoder", 512, Normalization("sigmoid"), pooling="rank")
EMBEDDING = Recipe("embedding", 512, Normalization("affine"), pooling="mean")
CAUSAL_LM = Recipe(
    "causal_lm", 8192, Normalization("sigmoid"), template="{query}{document}", labels=("yes", "no")
)
CARD = Gpu("card", 2**34, 2**34, "9.0")
CPU_ONLY = Binaries(None, 0, "", (), Binary("bundled", ("bundled",), "", 11549), (), ())


def spec(recipe: Recipe, architecture: str, tokenizer: tuple[str, str], **more: object) -> EngineSpec:
    model, pre = tokenizer
    said = {
        "architecture": architecture,
        "tokenizer_model": model,
        "tokenizer_pre": pre,
        "has_charsmap": True,
    }
    metadata = ModelMetadata(path=Path("m.gguf"), **(said | more))  # type: ignore[arg-type]
    return EngineSpec("m", Path("m.gguf"), recipe, {}, metadata=metadata)


XLMR = spec(HEAD, "bert", ("t5", "default"))
BERT = spec(EMBEDDING, "bert", ("bert", "jina-v2-en"))
MODERN = spec(HEAD, "modern-bert", ("gpt2", "modern-bert"))
QWEN = spec(CAUSAL_LM, "qwen3", ("gpt2", "qwen2"))
FOLDER = spec(HEAD, "bert", ("", ""), format="safetensors", parts=(Path("a"), Path("b")), has_charsmap=False)


def chosen(
    wanted: str,
    model: EngineSpec,
    *,
    found: Binaries = CPU_ONLY,
    options: LlamaOptions | None = None,
    has_wheel: bool = True,
) -> Selection:
    said: list[tuple[Backend, Offer | Refusal]] = [
        (OPENVINO, OPENVINO.offer(model, OpenVinoOptions(), has_wheel)),
        (LLAMA, LLAMA.offer(model, options or LlamaOptions(), found)),
    ]
    return select.choose(wanted, said)


LARGE = spec(CAUSAL_LM, "qwen3", ("gpt2", "qwen2"), block_weights=440_000_000, size_bytes=640_000_000)


def measured(model: EngineSpec, rates: tuple[float, float], memory_bytes: int = 2**36) -> Selection:
    """The selection where the speeds of OpenVINO and llama.cpp are these."""
    answers = select.modest(
        [
            (OPENVINO, OPENVINO.offer(model, OpenVinoOptions(), True)),
            (LLAMA, LLAMA.offer(model, LlamaOptions(), CPU_ONLY)),
        ],
        memory_bytes,
    )
    rivals = select.rivals("auto", answers)
    known = {id(one): select.rated(one, rate) for one, rate in zip(rivals, rates, strict=False)}
    return select.choose("auto", [(backend, known.get(id(one), one)) for backend, one in answers])


def test_a_measured_speed_decides_which_backend_runs_a_causal_model() -> None:
    fast = measured(LARGE, (160.0, 90.0))
    assert fast.offer.backend is OPENVINO and "160 GFLOP/s" in fast.offer.reason
    assert fast.fallback is not None and fast.fallback.backend is LLAMA
    slow = measured(LARGE, (80.0, 90.0))
    assert slow.offer.backend is LLAMA and "90 GFLOP/s" in slow.offer.reason
    assert measured(LARGE, (80.0, 0.0)).offer.backend is OPENVINO, "llama.cpp's measurement failed"
    unknown = measured(LARGE, (0.0, 0.0))
    assert unknown.offer.backend is OPENVINO and "not measured here yet" in unknown.offer.reason


def test_a_faster_backend_is_not_worth_most_of_the_memory() -> None:
    found = measured(LARGE, (160.0, 90.0), memory_bytes=4 * 2**30)
    assert found.offer.backend is LLAMA
    assert found.fallback is not None and found.fallback.backend is OPENVINO


def test_no_speed_is_measured_where_it_decides_nothing() -> None:
    for model in (QWEN, XLMR, spec(CAUSAL_LM, "phi3", ("gpt2", "llama-bpe"), block_weights=10**9)):
        answers = [
            (OPENVINO, OPENVINO.offer(model, OpenVinoOptions(), True)),
            (LLAMA, LLAMA.offer(model, LlamaOptions(), CPU_ONLY)),
        ]
        assert select.rivals("auto", answers) == []
    both = [
        (OPENVINO, OPENVINO.offer(LARGE, OpenVinoOptions(), True)),
        (LLAMA, LLAMA.offer(LARGE, LlamaOptions(), CPU_ONLY)),
    ]
    assert len(select.rivals("auto", both)) == 2 and select.rivals("llama", both) == []


def test_an_engine_that_needs_a_patched_copy_is_no_fallback() -> None:
    one_label = replace(LARGE, recipe=replace(CAUSAL_LM, labels=("yes",)))
    llama = replace(LLAMA.offer(LARGE, LlamaOptions(), CPU_ONLY), patch=object())  # type: ignore[arg-type, type-var]
    found = select.choose(
        "auto", [(OPENVINO, OPENVINO.offer(one_label, OpenVinoOptions(), True)), (LLAMA, llama)]
    )
    assert found.offer.backend is OPENVINO and found.fallback is None


@pytest.mark.parametrize("model", [XLMR, BERT, MODERN])
def test_encoders_run_on_openvino_and_fall_back_to_llama_cpp(model: EngineSpec) -> None:
    found = chosen("auto", model)
    assert found.offer.backend is OPENVINO and "fastest for an encoder" in found.offer.reason
    assert found.fallback is not None and found.fallback.backend is LLAMA
    assert found.fallback.reason == "OpenVINO can't run it here"
    assert found.refusals == {}
    for wanted, backend in (("openvino", OPENVINO), ("llama", LLAMA)):
        named = chosen(wanted, model)
        assert named.offer.backend is backend and named.fallback is None
        assert named.offer.reason.startswith("it is set as engine")


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (
            spec(CAUSAL_LM, "phi3", ("gpt2", "llama-bpe")),
            "not support causal models of the architecture phi3",
        ),
        (spec(CAUSAL_LM, "qwen3", ("gpt2", "qwen2"), rope_scaling="yarn"), "yarn scaling"),
        (spec(HEAD, "nomic-bert", ("t5", "default")), "architecture nomic-bert"),
        (spec(HEAD, "bert", ("llama", "default")), "tokenizer llama"),
        (spec(HEAD, "modern-bert", ("gpt2", "jina-v2-code")), "tokenizer gpt2 jina-v2-code"),
        (spec(HEAD, "bert", ("t5", "default"), has_charsmap=False), "normalization map"),
        (spec(replace(EMBEDDING, pooling="last"), "bert", ("bert", "")), "pooling last"),
        (
            spec(replace(EMBEDDING, pooling="mean"), "llama", ("gpt2", "llama-bpe")),
            "without labels or a head",
        ),
        (spec(CAUSAL_LM, "llama", ("gpt2", "tekken")), "tokenizer gpt2 tekken"),
        (
            spec(HEAD, "llama-embed", ("gpt2", "llama-bpe"), classifier_pooling="last"),
            "the pooling last of a head",
        ),
        (spec(HEAD, "bert", ("t5", "default"), parts=(Path("1"), Path("2"), Path("3"))), "split"),
        (spec(HEAD, "modern-bert", ("gpt2", "modern-bert"), hidden_activation="silu"), "activation silu"),
    ],
)
def test_models_that_openvino_can_not_run_use_llama_cpp_with_the_reason(model: EngineSpec, why: str) -> None:
    found = chosen("auto", model)
    assert found.offer.backend is LLAMA and found.fallback is None
    assert why in found.offer.reason and "no other engine is installed" in found.offer.reason
    assert why in found.refusals["OpenVINO"].reason
    with pytest.raises(ConfigError, match=why):
        chosen("openvino", model)


def test_without_the_extra_encoders_run_on_llama_cpp() -> None:
    found = chosen("auto", XLMR, has_wheel=False)
    assert found.offer.backend is LLAMA and "not installed" in found.offer.reason
    with pytest.raises(ConfigError, match=r"pip install 'rerankd\[openvino\]'"):
        chosen("openvino", XLMR, has_wheel=False)


def test_a_llama_server_chosen_by_the_user_has_no_fallback() -> None:
    for options, found in (
        (LlamaOptions(llama_path=Path("/my/server")), replace(CPU_ONLY, own=Path("/my/server"))),
        (LlamaOptions(engine_args=("--mlock",)), CPU_ONLY),
        (LlamaOptions(), replace(CPU_ONLY, used="bundled")),
    ):
        selection = chosen("auto", XLMR, options=options, found=found)
        assert selection.offer.backend is LLAMA and selection.fallback is None
        assert selection.offer.rank == Rank.NAMED
        assert chosen("openvino", XLMR, options=options, found=found).offer.backend is OPENVINO


def test_an_engine_with_a_gpu_is_preferred() -> None:
    own = replace(CPU_ONLY, own=Path("/my/server"), gpus=(CARD,))
    on_card = LLAMA.offer(XLMR, LlamaOptions(), own)
    assert isinstance(on_card, Offer) and not on_card.on_cpu and "a GPU" in on_card.reason
    found = select.choose(
        "auto", [(OPENVINO, OPENVINO.offer(XLMR, OpenVinoOptions(), True)), (LLAMA, on_card)]
    )
    assert found.offer.backend is LLAMA
    assert found.fallback is not None and found.fallback.backend is OPENVINO


def test_safetensors_always_run_on_openvino() -> None:
    named = LlamaOptions(llama_path=Path("/my/server"))
    for wanted, options in (("auto", None), ("openvino", None), ("auto", named)):
        found = chosen(wanted, FOLDER, options=options, found=replace(CPU_ONLY, gpus=(CARD,)))
        assert found.offer.backend is OPENVINO and found.fallback is None
    with pytest.raises(ConfigError, match="reads GGUF files only"):
        chosen("llama", FOLDER)
    with pytest.raises(ConfigError, match=r"not installed.*GGUF files only"):
        chosen("auto", FOLDER, has_wheel=False)


def test_an_encoder_needs_no_llama_cpp() -> None:
    nothing = replace(CPU_ONLY, bundled=None)
    assert chosen("auto", XLMR, found=nothing).offer.backend is OPENVINO
    other = spec(CAUSAL_LM, "phi3", ("gpt2", "llama-bpe"))
    with pytest.raises(ConfigError, match=r"not support causal models.*LLAMA_PATH"):
        chosen("auto", other, found=nothing)


def test_a_causal_model_runs_on_llama_cpp_unless_openvino_is_chosen_or_is_the_only_engine() -> None:
    found = chosen("auto", QWEN)
    assert found.offer.backend is LLAMA
    assert found.fallback is not None and found.fallback.backend is OPENVINO
    assert chosen("openvino", QWEN).offer.backend is OPENVINO
    assert chosen("auto", QWEN, found=replace(CPU_ONLY, bundled=None)).offer.backend is OPENVINO


def test_an_engine_that_is_too_old_is_refusalwith_the_number_needed() -> None:
    said = LLAMA.offer(replace(QWEN, needs_build=99999), LlamaOptions(), CPU_ONLY)
    assert isinstance(said, Refusal) and "needs llama.cpp b99999 or newer" in said.reason
    assert said.next_step == "build a newer one: rerankd engine build"


def test_openvino_refuses_a_model_without_metadata() -> None:
    assert refused(HEAD, None, is_installed=True) is not None


def test_block_scores_are_not_compared_with_pair_scores() -> None:
    model: Any = SimpleNamespace(spec=XLMR)
    running = backend_offer(OPENVINO, XLMR)
    other = run_self_test.second_computation(model, running)
    assert other is not None and other.backend.name == "llama"
    assert (
        run_self_test.second_computation(model, replace(running, capabilities=Capabilities("block"))) is None
    )


def test_each_backend_has_its_own_batch_policy() -> None:
    found = chosen("auto", XLMR)
    assert found.fallback is not None and found.offer.policy.pads and not found.fallback.policy.pads


def test_memory_grows_with_replicas_and_with_expanded_weights() -> None:
    one = spec(HEAD, "bert", ("t5", "default"), size_bytes=100, block_weights=10)
    held = {backend: backend_offer(backend, one).memory_bytes for backend in (OPENVINO, LLAMA)}
    assert held == {OPENVINO: 180, LLAMA: 100}
    assert backend_offer(OPENVINO, replace(one, replicas=3)).memory_bytes == 540
    compressed = OPENVINO.offer(one, OpenVinoOptions(weights="compressed"), True)
    assert isinstance(compressed, Offer) and compressed.memory_bytes == 130


def backend_offer(backend: OpenVinoBackend | LlamaBackend, model: EngineSpec) -> Offer:
    said = (
        backend.offer(model, OpenVinoOptions(), True)
        if isinstance(backend, OpenVinoBackend)
        else backend.offer(model, LlamaOptions(), CPU_ONLY)
    )
    assert isinstance(said, Offer)
    return said


def test_what_is_not_installed_is_told_where_it_would_help() -> None:
    torch = TorchBackend()
    for has_card, told in ((False, False), (True, True)):
        missing = torch.offer(XLMR, TorchOptions(), Survey("", has_card=has_card))
        found = select.choose(
            "auto", [(torch, missing), (LLAMA, LLAMA.offer(XLMR, LlamaOptions(), CPU_ONLY))]
        )
        assert ("PyTorch is not installed" in found.offer.reason) is told
        assert ("pip install 'rerankd[torch]'" in found.offer.reason) is told
        assert found.refusals["PyTorch"] == missing
    with pytest.raises(ConfigError, match=r"pip install 'rerankd\[torch\]'"):
        select.choose("auto", [(torch, torch.offer(XLMR, TorchOptions(), Survey("")))])


def test_pytorch_comes_first_on_a_gpu_and_last_on_a_cpu() -> None:
    torch, cpu = TorchBackend(), Device("cpu", "a CPU")
    card = Device("cuda:0", "a card", 2**34, True, (9, 0))
    on_gpu = replace(CPU_ONLY, own=Path("/my/server"), gpus=(CARD,))
    for seen, binaries, order in (
        ((cpu,), CPU_ONLY, ["openvino", "llama"]),
        ((card, cpu), on_gpu, ["torch", "llama"]),
    ):
        found = select.choose(
            "auto",
            [
                (OPENVINO, OPENVINO.offer(XLMR, OpenVinoOptions(), True)),
                (torch, torch.offer(XLMR, TorchOptions(), Survey("2.14", seen))),
                (LLAMA, LLAMA.offer(XLMR, LlamaOptions(), binaries)),
            ],
        )
        assert found.fallback is not None
        assert [found.offer.backend.name, found.fallback.backend.name] == order
        # After running out of memory, llama.cpp is tried instead of PyTorch on a GPU: it takes less.
        (last,) = found.last_steps
        assert last == OTHER_BACKEND and last.saves_memory is (order[0] == "torch")
