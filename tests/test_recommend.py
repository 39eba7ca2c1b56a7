"""`rerankd list --recommend`: the recommended models on several machines, and the command's output."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rerankd.hub import recommendation
from rerankd.recipes import catalog
from rerankd.recipes.recommend import Pick, Wish, recommend
from support import rerankd

GIB = 2**30
ENTRIES = catalog.known().entries


def picked(**wish: object) -> list[tuple[str, str, str]]:
    return [
        (pick.entry.name.lower(), pick.best_for, pick.device)
        for pick in recommend(ENTRIES, Wish(**wish))  # type: ignore[arg-type]
    ]


@pytest.mark.parametrize(
    ("wish", "names"),
    [
        # A small virtual machine: nothing multilingual is fast, and English models are.
        (
            {"memory_bytes": 4 * GIB, "cores": 2},
            [("bge-reranker-v2-m3", "quality", "CPU"), ("ettin-reranker-68m-v1", "English", "CPU")],
        ),
        (
            {"memory_bytes": 4 * GIB, "cores": 2, "language": "en"},
            [("ettin-reranker-68m-v1", "quality", "CPU"), ("ettin-reranker-17m-v1", "speed", "CPU")],
        ),
        ({"memory_bytes": GIB, "cores": 2}, [("ettin-reranker-68m-v1", "English", "CPU")]),
        ({"memory_bytes": GIB, "cores": 2, "language": "zh"}, []),
        # A server without a GPU: a larger model is fast enough.
        (
            {"memory_bytes": 64 * GIB, "cores": 16, "language": "zh"},
            [("qwen3-reranker-0.6b", "quality", "CPU"), ("bge-reranker-v2-m3", "speed", "CPU")],
        ),
        (
            {"memory_bytes": None, "cores": 16, "language": "en"},
            [("ettin-reranker-400m-v1", "quality", "CPU"), ("ettin-reranker-17m-v1", "speed", "CPU")],
        ),
        # With a GPU: the largest model that fits into its memory.
        (
            {"memory_bytes": 16 * GIB, "cores": 8, "gpu_bytes": 8 * GIB, "language": "zh"},
            [("qwen3-reranker-4b", "quality", "GPU"), ("bge-reranker-v2-m3", "speed", "GPU")],
        ),
        (
            {"memory_bytes": 16 * GIB, "cores": 2, "gpu_bytes": 4 * GIB},
            [("qwen3-reranker-0.6b", "quality", "GPU"), ("bge-reranker-v2-m3", "speed", "GPU")],
        ),
    ],
)
def test_the_picks_suit_the_machine(wish: dict[str, object], names: list[tuple[str, str, str]]) -> None:
    assert picked(**wish) == names


def entry(name: str, **values: object) -> catalog.Entry:
    fields = {"licence": "MIT", "languages": ("multi",), "refs": ("hf:a/b-GGUF",), "quant": "Q8_0"}
    fields |= {"size_mb": 100, "ndcg10": 0.5, "method": "cross_encoder"}
    match = catalog.Match(architectures=("bert",), names=("a",), block_count=1, embedding_length=8)
    return catalog.Entry.model_validate({"name": name, "match": match, **fields, **values})


def names(picks: tuple[Pick, ...]) -> list[str]:
    return [pick.entry.name for pick in picks]


def test_commercial_leaves_out_licences_that_forbid_it_or_that_are_not_known() -> None:
    entries = (
        entry("best", ndcg10=0.9, licence="CC-BY-NC-4.0"),
        entry("second", ndcg10=0.8, licence="see its card"),
        entry("third"),
    )
    wish = {"memory_bytes": None, "cores": 8, "language": "zh"}
    assert names(recommend(entries, Wish(**wish))) == ["best"]  # type: ignore[arg-type]
    assert names(recommend(entries, Wish(**wish, commercial=True))) == ["third"]  # type: ignore[arg-type]


def test_a_model_without_a_published_quality_a_size_or_a_repository_is_not_recommended() -> None:
    entries = (
        entry("a", ndcg10=0.0),
        entry("b", size_mb=0),
        entry("c", refs=()),
        entry("d", languages=("en",)),
    )
    assert recommend(entries, Wish(None, 8, language="zh")) == ()


def test_a_model_in_safetensors_runs_on_the_cpu() -> None:
    entries = (entry("a", refs=("hf:a/b",), quant="F32"),)
    (pick,) = recommend(entries, Wish(8 * GIB, 8, gpu_bytes=80 * GIB, language="zh"))
    assert pick.device == "CPU"


def test_each_pick_has_one_sentence() -> None:
    for cores in (1, 2, 4, 16, 64):
        for gpu in (0, 4, 8, 24):
            for language in ("", "en", "zh"):
                for pick in recommend(ENTRIES, Wish(16 * GIB, cores, gpu * GIB, language)):
                    assert pick.why.endswith(".") and f"nDCG@10 {pick.entry.ndcg10:.3f}" in pick.why


def test_the_published_values_are_those_of_the_publication() -> None:
    assert {entry.name: entry.ndcg10 for entry in ENTRIES if entry.ndcg10} == {
        "Qwen3-Reranker-4B": 0.6367,
        "mxbai-rerank-large-v2": 0.6115,
        "ettin-reranker-1b-v1": 0.6114,
        "ettin-reranker-400m-v1": 0.6091,
        "ettin-reranker-150m-v1": 0.5994,
        "Qwen3-Reranker-0.6B": 0.5940,
        "ettin-reranker-68m-v1": 0.5915,
        "ettin-reranker-32m-v1": 0.5779,
        "ettin-reranker-17m-v1": 0.5576,
        "bge-reranker-v2-m3": 0.5526,
    }


def test_the_text_states_machine_reason_command_and_source() -> None:
    text = recommendation.text(recommendation.describe(Wish(16 * GIB, 4, language="en")))
    assert text.startswith("This machine has 4 CPU cores, 16 GiB of memory and no GPU that engines can use.")
    assert "\n    The best published quality of the 4 models that suit this machine: nDCG@10 0.599.\n" in text
    assert "\n    rerankd pull ettin-reranker-150m-v1\n" in text
    assert "published with ettin-reranker" in text and "other languages" not in text
    chinese = recommendation.text(recommendation.describe(Wish(16 * GIB, 1, language="zh")))
    assert "It is slow on one CPU core; a GPU would help." in chinese
    assert "For other languages no source" in chinese
    none = recommendation.text(recommendation.describe(Wish(GIB, 2, language="zh"), has_unknown_gpu=True))
    assert "perhaps a GPU, whose memory" in none and none.endswith("rerankd pull builtin:e5")


def test_the_command_prints_text_and_json(tmp_path: Path) -> None:
    printed = rerankd(
        "list", "--catalog", "--recommend", "--language", "zh-CN", "--commercial", home=tmp_path
    )
    assert printed.returncode == 0 and "rerankd pull " in printed.stdout, printed.stderr
    as_json = rerankd("list", "--recommend", "--json", home=tmp_path)
    found = json.loads(as_json.stdout)
    assert found["models"] and found["machine"]["cores"] > 0 and "ettin" in found["quality_source"]
    assert {"name", "why", "command", "ndcg10", "licence", "device"} <= found["models"][0].keys()


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--language", "zh"], "are for --recommend"), (["--recommend", "--language", "Chinese"], "such as zh")],
)
def test_invalid_options_say_what_to_write(options: list[str], words: str, tmp_path: Path) -> None:
    ended = rerankd("list", *options, home=tmp_path)
    assert ended.returncode == 2 and words in ended.stderr
