"""`resolve`: the recipe or the refusal for each kind of model file, and the settings that override it."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufs import strings
from rerankd.deprecated_names import RENAMED, Renamed, old_value
from rerankd.domain import Method, Normalization, Recipe
from rerankd.errors import ConfigError, Unscorable
from rerankd.formats.metadata import ModelMetadata
from rerankd.hub.inspect import describe, describe_json, size_words
from rerankd.recipes import catalog
from rerankd.recipes.explanation import explain
from rerankd.recipes.partial_recipe import PartialRecipe, merge
from rerankd.recipes.recipe_sources import CAUSAL_MAX_LENGTH
from rerankd.recipes.resolution import Resolution
from rerankd.recipes.resolve import resolve
from rerankd.scoring.prompt import choose

QWEN = strings("yes", "no", "1", "0", "Yes", "No", "<|im_start|>", "<|im_end|>", "<think>", "Ġmaybe")
SPECIAL = {"<|im_start|>": 6, "<|im_end|>": 7}
HEAD = {"has_cls": True, "cls_rows": 1024, "has_cls_output": True, "cls_output_rows": 1}
MODERN_HEAD = HEAD | {"has_cls_norm": True}
HEAD_OUT = {"has_cls_output": True, "cls_output_rows": 1}
PAIR_HEAD = {"has_cls_output": True, "cls_output_rows": 2, "pooling": "rank"}


def metadata(arch: str, **more: Any) -> ModelMetadata:
    given: dict[str, Any] = {
        "context_length": 512,
        "embedding_length": 1024,
        "block_count": 24,
        "vocabulary_size": 10,
        "parameters": 1000,
        "tokens": QWEN,
    }
    return ModelMetadata(path=Path("m.gguf"), architecture=arch, **(given | more))


def xlmr(**more: Any) -> ModelMetadata:
    return metadata("bert", **({"tokenizer_model": "t5", "token_type_count": 1} | more))


def wordpiece(**more: Any) -> ModelMetadata:
    return metadata("bert", **({"tokenizer_model": "bert", "token_type_count": 2} | more))


def qwen(arch: str = "qwen3", blocks: int = 28, width: int = 1024, **more: Any) -> ModelMetadata:
    given: dict[str, Any] = {
        "block_count": blocks,
        "embedding_length": width,
        "context_length": 40960,
        "tokenizer_model": "gpt2",
        "control_tokens": SPECIAL,
    }
    return metadata(arch, **(given | more))


def resolution_of(found: ModelMetadata, settings: PartialRecipe | None = None) -> Resolution:
    return resolve(found, catalog.known(), settings or PartialRecipe())


HEADS = {
    "bge-reranker-v2-m3": xlmr(name="Bge Reranker v2 M3", context_length=8192, **HEAD),
    "bge-reranker-large": xlmr(name="bge-reranker-large", **HEAD),
    "bge-reranker-base": xlmr(name="BGE Reranker Base", block_count=12, embedding_length=768, **HEAD),
    "jina-reranker-v2-base-multilingual": xlmr(
        name="Jina Reranker v2 Base Multilingual",
        block_count=12,
        embedding_length=768,
        context_length=1024,
        **HEAD,
    ),
    "gte-reranker-modernbert-base": metadata(
        "modern-bert", basename="gte-reranker-modernbert", name="Gte Reranker Modernbert Base",
        block_count=22, embedding_length=768, context_length=8192, **MODERN_HEAD,
    ),
    "granite-embedding-reranker-english-r2": metadata(
        "modern-bert", name="Granite Embedding Reranker English R2", classifier_pooling="cls",
        block_count=22, embedding_length=768, context_length=8192, **MODERN_HEAD,
    ),
    "": xlmr(name="mmarco mMiniLMv2 L12 H384 v1", embedding_length=384, block_count=12, **HEAD),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_cross_encoders_with_their_head(name: str) -> None:
    found = HEADS[name]
    resolved = resolution_of(found)
    assert (resolved.entry.name if resolved.entry else "") == name
    scoring = resolved.require()
    assert (scoring.method, scoring.pooling, scoring.normalization) == (
        "cross_encoder",
        "rank",
        Normalization("sigmoid"),
    )
    assert scoring.max_length == found.context_length
    assert (scoring.template, scoring.labels, scoring.query_prefix) == ("", ("", ""), "")


@pytest.mark.parametrize(
    "found",
    [
        metadata("neo-bert", **HEAD),
        metadata("modern-bert", classifier_pooling="cls", **MODERN_HEAD),
        xlmr(pooling="rank", **HEAD),
    ],
    ids=lambda found: found.architecture,
)
def test_unnamed_cross_encoders_with_their_head(found: ModelMetadata) -> None:
    assert resolution_of(found).require().method == "cross_encoder"


def test_a_cross_encoder_keeps_the_template_of_its_file() -> None:
    assert (
        resolution_of(xlmr(rerank_template="{query}|{document}", **HEAD)).require().template
        == "{query}|{document}"
    )


QWEN3_PROMPT = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
    'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}<|im_end|>\n<|im_start|>assistant\n"
    "<think>\n\n</think>\n\n"
)
MXBAI_PROMPT = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n\x1equery: {query}\x1e\n\x1edocument: {document}\x1e\n\x1eYou are a search "
    "relevance expert who evaluates how well documents match search queries. For each query-document pair, "
    "carefully analyze the semantic relationship between them, then provide your binary relevance judgment "
    "(0 for not relevant, 1 for relevant).\nRelevance:\x1e<|im_end|>\n<|im_start|>assistant\n"
)
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
# What llama.cpp's converter writes.
QWEN3_FILE_TEMPLATE = QWEN3_PROMPT.replace("{instruction}", INSTRUCTION)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("Qwen3-Reranker-0.6B", qwen(name="Qwen3 Reranker 0.6B")),
        ("Qwen3-Reranker-0.6B", qwen(name="Model", basename="Qwen3-Reranker")),
        ("Qwen3-Reranker-0.6B", qwen(name="Qwen3-Reranker-0.6B-seq-cls", **HEAD_OUT)),
        ("Qwen3-Reranker-4B", qwen(name="Qwen3 Reranker 4B", blocks=36, width=2560, **PAIR_HEAD)),
        ("Qwen3-Reranker-8B", qwen(name="Qwen3 Reranker 8B", blocks=36, width=4096, has_output=True)),
        ("", qwen(output_labels=("yes", "no"), **PAIR_HEAD)),
        ("", qwen(rerank_template=QWEN3_FILE_TEMPLATE)),
        ("", qwen(rerank_template=QWEN3_FILE_TEMPLATE, output_labels=("yes", "no"), **PAIR_HEAD)),
        ("", qwen(name="My Qwen3-Reranker", blocks=12)),
        ("KURE-Reranker-base", qwen(name="KURE Reranker Base", width=2048)),
        ("PIXIE-Spell-Reranker-Preview-0.6B", qwen(name="PIXIE-Spell-Reranker-Preview-0.6B")),
        ("MemReranker-0.6B", qwen(name="MemReranker 0.6B")),
        ("MemReranker-4B", qwen(basename="MemReranker", blocks=36, width=2560)),
    ],
)
def test_qwen3_rerankers_are_causal_lm_with_or_without_a_head(name: str, found: ModelMetadata) -> None:
    resolved = resolution_of(found)
    assert (resolved.entry.name if resolved.entry else "") == name
    scoring = resolved.require()
    assert (scoring.method, scoring.template, scoring.labels) == ("causal_lm", QWEN3_PROMPT, ("yes", "no"))
    assert (scoring.instruction, scoring.normalization) == (INSTRUCTION, Normalization("sigmoid"))
    assert (scoring.max_length, scoring.pooling) == (CAUSAL_MAX_LENGTH, "none")
    assert any("rank head is not used" in note for note in resolved.notes) == found.has_cls_output


@pytest.mark.parametrize(
    ("names", "extra"),
    [
        ({"name": "Acme Qwen3 Reranker 0.6B Legal"}, "acme legal"),
        ({"name": "Model", "basename": "Qwen3-Reranker", "finetune": "medical-ko"}, "medical ko"),
        ({"name": "Qwen3 Reranker 0.6B"}, ""),
        ({"name": "Models Qwen Qwen3 Reranker 0.6B Hf"}, ""),
        ({"name": "Qwen3-Reranker-0.6B-Q4_K_M.gguf"}, ""),
        ({"name": "Qwen3-Reranker-0.6B-seq-cls", "basename": "my-qwen3-reranker"}, ""),
    ],
)
def test_extra_words_in_a_known_name_are_a_warning(names: dict[str, str], extra: str) -> None:
    """A fine-tune may need another prompt, and was served like the known model without a warning."""
    resolved = resolution_of(qwen(**names))
    assert resolved.require().method == "causal_lm"
    expected = [True] if extra else []
    assert [f"its name also contains '{extra}'" in warning for warning in resolved.warnings] == expected


@pytest.mark.parametrize(("blocks", "width", "size"), [(24, 896, "base"), (28, 1536, "large")])
def test_mxbai_has_the_labels_1_and_0(blocks: int, width: int, size: str) -> None:
    found = qwen("qwen2", blocks, width, name=f"Mxbai Rerank {size.title()} v2", context_length=32768)
    resolved = resolution_of(found)
    assert resolved.entry is not None
    assert resolved.entry.name == f"mxbai-rerank-{size}-v2"
    scoring = resolved.require()
    template = choose(scoring.template, instructed=False)
    assert (scoring.method, template, scoring.labels) == ("causal_lm", MXBAI_PROMPT, ("1", "0"))
    assert scoring.instruction == ""


E5 = ("mean", "query: ", "passage: ", Normalization("affine", 0.70, 0.95))
QWEN3_EMBEDDING = ("last", f"Instruct: {INSTRUCTION}\nQuery:", "", Normalization("affine", 0.10, 0.85))


@pytest.mark.parametrize(
    ("name", "found", "expected"),
    [
        (
            "multilingual-e5-small",
            xlmr(name="Multilingual E5 Small", block_count=12, embedding_length=384),
            E5,
        ),
        (
            "multilingual-e5-small (4-bit, built in)",
            xlmr(name="multilingual-e5-small (4-bit, built in)", block_count=12, embedding_length=384),
            E5,
        ),
        ("multilingual-e5-base", xlmr(name="multilingual-e5-base", block_count=12, embedding_length=768), E5),
        ("multilingual-e5-large", xlmr(name="multilingual-e5-large", pooling="mean"), E5),
        (
            "multilingual-e5-large-instruct",
            xlmr(name="Multilingual E5 Large Instruct"),
            ("mean", f"Instruct: {INSTRUCTION}\nQuery: ", "", Normalization("affine", 0.70, 0.95)),
        ),
        ("bge-m3", xlmr(name="bge-m3", pooling="cls"), ("cls", "", "", Normalization("affine", 0.30, 0.85))),
        (
            "nomic-embed-text-v1.5",
            metadata("nomic-bert", name="nomic-embed-text-v1.5", block_count=12, embedding_length=768),
            ("mean", "search_query: ", "search_document: ", Normalization("affine", 0.40, 0.90)),
        ),
        ("Qwen3-Embedding-0.6B", qwen(name="Qwen3 Embedding 0.6B", add_eos=True), QWEN3_EMBEDDING),
        (
            "Qwen3-Embedding-8B",
            qwen(name="Qwen3-Embedding-8B", blocks=36, width=4096, add_eos=True),
            QWEN3_EMBEDDING,
        ),
        (
            "all-MiniLM-L6-v2",
            wordpiece(name="all-MiniLM-L6-v2", block_count=6, embedding_length=384),
            ("mean", "", "", Normalization("affine", 0.0, 0.85)),
        ),
        ("", wordpiece(name="Snowflake", pooling="cls"), ("cls", "", "", Normalization("affine", 0.0, 1.0))),
        ("", qwen(pooling="last"), ("last", "", "", Normalization("affine", 0.0, 1.0))),
    ],
)
def test_embedding_models(name: str, found: ModelMetadata, expected: tuple[Any, ...]) -> None:
    resolved = resolution_of(found)
    assert (resolved.entry.name if resolved.entry else "") == name
    scoring = resolved.require()
    got = (scoring.pooling, scoring.query_prefix, scoring.document_prefix, scoring.normalization)
    assert (scoring.method, got) == ("embedding", expected)
    assert any("not in the catalog" in note for note in resolved.notes) == (not name)
    assert any("end token" in note for note in resolved.notes) == (not name and scoring.pooling == "last")


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (wordpiece(name="ms-marco-MiniLM-L6-v2", **HEAD_OUT), "ms-marco-MiniLM: .*pooler"),
        (wordpiece(name="Cross Encoder", **HEAD_OUT), "two token types.*pooler.*order"),
        (wordpiece(name="Cross Encoder", pooling="rank"), "two token types"),
        (wordpiece(name="Bge Reranker v2 M3", **HEAD), "two token types.* type 0, so even"),
        (wordpiece(token_type_count=1, **HEAD), "DistilBERT"),
        (xlmr(**HEAD_OUT), r"incomplete: cls\.weight is missing"),
        (xlmr(name="Bge Reranker v2 M3"), r"cls\.weight and cls\.output\.weight are missing"),
        (xlmr(pooling="rank"), r"cls\.weight and cls\.output\.weight are missing"),
        (xlmr(**(HEAD | {"cls_output_rows": 3})), "classifier with 3 labels"),
        (metadata("jina-bert-v2", has_cls=True, cls_rows=1), "tanh to the single logit"),
        (
            metadata("jina-bert-v2", name="Jina Reranker v1 Tiny En", block_count=4, embedding_length=384),
            "jina-reranker-v1-tiny-en: .*pooler",
        ),
        (
            replace(HEADS["granite-embedding-reranker-english-r2"], classifier_pooling=None),
            "pooling 'cls'.*older llama.cpp",
        ),
        (replace(HEADS["gte-reranker-modernbert-base"], classifier_pooling="cls"), "pooling 'mean'"),
        (metadata("modern-bert", classifier_pooling="cls", **HEAD_OUT), r"cls\.weight is missing"),
        (metadata("eurobert", pooling="rank"), "no rank head for eurobert"),
        (metadata("qwen3", causal_attention=False, pooling="rank"), "no rank head for qwen3"),
        (metadata("bert"), "declares no pooling"),
        (metadata("bert", pooling="none"), "declares no pooling"),
        (qwen(name="Qwen3 0.6B", chat_template="…"), "plain language model"),
        (qwen("llama", name="Llama 3.2 1B Instruct"), "plain language model"),
        (qwen("gemma3", name="Some Reranker"), "not in the catalog"),
        (qwen("qwen2", pooling="rank"), "not in the catalog"),
        (qwen("gemma", 18, 2048, name="bge-reranker-v2-gemma"), "<bos> is not a special token"),
        (qwen(name="zerank-2"), "not in the catalog"),
        (qwen(name="Jina Reranker v3"), "no token <|embed_token|>"),
        (qwen("llama", name="Llama Nemotron Rerank 1b v2"), "bidirectional"),
        (qwen("minicpm", name="bge-reranker-v2-minicpm-layerwise"), "layer chosen"),
        (qwen(name="Qwen3 Reranker 8B", blocks=36, width=4096, **PAIR_HEAD), "output.weight"),
        (qwen(name="Qwen3 Reranker 0.6B", tokens=strings("yes")), "'no' is not a single token"),
        (qwen(name="Qwen3 Reranker 0.6B", control_tokens={}), "<|im_start|> is not a special"),
        (metadata("bert", kind="adapter"), "adapter"),
        (metadata("bert", parameters=0), "no weights"),
        (metadata("bert", vocabulary_size=0), "no vocabulary"),
    ],
)
def test_a_refusal_has_a_reason_and_a_next_step(found: ModelMetadata, reason: str) -> None:
    resolved = resolution_of(found)
    assert resolved.refusal is not None and resolved.refusal.next_step
    with pytest.raises(
        Unscorable,
        match=f"^m.gguf: can't be scored correctly: .*{reason.replace('|', '[|]')}.*[.] [A-Z].+[.]",
    ):
        resolved.require()


def test_a_head_overrides_an_embedding_models_name() -> None:
    resolved = resolution_of(xlmr(name="bge-m3", **HEAD))
    assert (resolved.require().method, resolved.entry) == ("cross_encoder", None)


def test_a_model_of_other_sizes_is_not_recognised_by_its_name() -> None:
    assert resolution_of(qwen(name="Qwen3 Reranker 0.6B", width=1000)).entry is None
    assert resolution_of(qwen(name="Qwen3 Reranker 0.6B", blocks=27)).entry is None
    assert resolution_of(xlmr(name="multilingual-e5-small")).entry is None


def test_a_name_matches_whole_words_and_the_architecture() -> None:
    assert resolution_of(xlmr(name="notbge-m3", pooling="cls")).entry is None
    assert resolution_of(xlmr(name="bge-m30", pooling="cls")).entry is None
    assert resolution_of(metadata("nomic-bert", name="bge-m3", pooling="cls")).entry is None
    assert resolution_of(xlmr(name="My bge-m3 (tuned)", pooling="cls")).entry is not None


CHAT = qwen("llama", name="Llama 3.2 1B Instruct", context_length=131072)
PROMPT = PartialRecipe(template="Q: {query}\nD: {document}\nRelevant?", labels=("Yes", "No"))


def test_template_and_labels_make_any_causal_model_a_reranker() -> None:
    scoring = resolution_of(CHAT, PROMPT).require()
    assert (scoring.method, scoring.template, scoring.labels) == ("causal_lm", PROMPT.template, ("Yes", "No"))
    assert (scoring.instruction, scoring.max_length) == ("", CAUSAL_MAX_LENGTH)
    spaced = resolution_of(
        CHAT.__class__(**_fields(CHAT, tokenizer_model="gpt2")), replace(PROMPT, labels=(" maybe", "No"))
    )
    assert spaced.require().labels == (" maybe", "No")
    zerank = qwen(name="zerank-2", blocks=36, width=2560)
    assert resolution_of(zerank, PROMPT).require().labels == ("Yes", "No")


def _fields(found: ModelMetadata, **more: Any) -> dict[str, Any]:
    return {name: getattr(found, name) for name in ModelMetadata.__dataclass_fields__} | more


def test_instruction_and_template_of_the_settings_override_the_catalog() -> None:
    found = qwen(name="Qwen3 Reranker 0.6B")
    assert resolution_of(found, PartialRecipe(instruction="Find code")).require().instruction == "Find code"
    own = resolution_of(found, PartialRecipe(template="{query} {document}")).require()
    assert (own.labels, own.instruction) == (("yes", "no"), "")
    own = resolution_of(found, PartialRecipe(template="{instruction} {query} {document}")).require()
    assert own.instruction == INSTRUCTION


BGE = HEADS["bge-reranker-v2-m3"]
E5_METADATA = xlmr(name="multilingual-e5-large")


@pytest.mark.parametrize(
    ("found", "settings", "words"),
    [
        (CHAT, replace(PROMPT, template="{query}"), "{document} exactly once, but contains it 0 times"),
        (CHAT, replace(PROMPT, template="{query}{document}{document}"), "contains it 2 times"),
        (CHAT, replace(PROMPT, template="{query}{document}{instruction}{instruction}"), "more than once"),
        (CHAT, replace(PROMPT, labels=("Yes", "Nope")), "'Nope' is not a single token"),
        (CHAT, replace(PROMPT, labels=("Yes", "Yes")), "two different"),
        (CHAT, replace(PROMPT, labels=("Yes", "")), "two different"),
        (CHAT, PartialRecipe(method="cross_encoder"), "Remove method = cross_encoder"),
        (CHAT, replace(PROMPT, instruction="x"), "no {instruction}"),
        (CHAT, replace(PROMPT, pooling="last"), "pooling is for method = embedding"),
        (BGE, PROMPT, "is an encoder"),
        (BGE, PartialRecipe(instruction="x"), "instruction is for method = causal_lm"),
        (BGE, PartialRecipe(query_prefix="x"), "query_prefix is for method = embedding"),
        (BGE, PartialRecipe(max_length=8193), "from 32 to 8192"),
        (BGE, PartialRecipe(max_length=31), "from 32 to 8192"),
        (BGE, PartialRecipe(low=0.1), "low and high are for"),
        (E5_METADATA, PartialRecipe(normalization="sigmoid"), "squeezes"),
        (E5_METADATA, PartialRecipe(low=0.95), "must be less"),
    ],
)
def test_settings_that_contradict_the_model_are_an_error(
    found: ModelMetadata, settings: PartialRecipe, words: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        resolution_of(found, settings)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    ("found", "settings", "words"),
    [
        (CHAT, replace(PROMPT, labels=None), "labels must be set"),
        (CHAT, replace(PROMPT, template=None), "template must be set"),
        (CHAT, PartialRecipe(method="causal_lm"), "template and labels must be set"),
        (qwen(name="Jina Reranker v3"), PartialRecipe(method="causal_lm"), "template and labels must be set"),
    ],
)
def test_a_missing_part_is_named_with_the_settings_that_supply_it(
    found: ModelMetadata, settings: PartialRecipe, words: str
) -> None:
    refusal = resolution_of(found, settings).refusal
    assert refusal is not None
    assert words in refusal.reason and 'method = "causal_lm"' in refusal.lines


def test_the_first_source_wins_except_for_the_smallest_max_length() -> None:
    merged, sources = merge(
        {
            "settings": PartialRecipe(labels=("a", "b")),
            "catalog": PartialRecipe(labels=("c", "d"), query_prefix="", max_length=512),
            "file": PartialRecipe(query_prefix="q", max_length=256, pooling="cls"),
            "method default": PartialRecipe(max_length=8192),
        }
    )
    assert merged == PartialRecipe(labels=("a", "b"), query_prefix="", max_length=256, pooling="cls")
    assert sources == {
        "labels": "settings", "query_prefix": "catalog", "max_length": "file", "pooling": "file",
    }  # fmt: skip
    set_by_user = {"settings": PartialRecipe(max_length=1024), "file": PartialRecipe(max_length=512)}
    assert merge(set_by_user)[0].max_length == 1024  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "settings", "sources"),
    [
        (
            qwen(name="Qwen3 Reranker 0.6B"),
            PartialRecipe(instruction="Find code"),
            {"method": "catalog", "max_length": "method default", "template": "catalog", "labels": "catalog",
             "normalization": "method default", "instruction": "settings"},
        ),
        (
            qwen(rerank_template="{query}|{document}", output_labels=("yes", "no"), **PAIR_HEAD),
            PartialRecipe(max_length=64),
            {"method": "file", "max_length": "settings", "template": "file", "labels": "file",
             "normalization": "method default"},
        ),
        (
            xlmr(name="multilingual-e5-large", pooling="mean"),
            PartialRecipe(low=0.5),
            {"method": "catalog", "max_length": "file", "pooling": "catalog", "normalization": "catalog",
             "low": "settings", "high": "catalog", "query_prefix": "catalog", "document_prefix": "catalog"},
        ),
        (
            xlmr(**HEAD),
            PartialRecipe(),
            {"method": "file", "max_length": "file", "pooling": "method default",
             "normalization": "method default"},
        ),
        (
            qwen(name="Qwen3 Reranker 0.6B"),
            PartialRecipe(template="{query} {document}"),
            {"method": "settings", "max_length": "method default", "template": "settings",
             "labels": "catalog", "normalization": "method default"},
        ),
    ],
)  # fmt: skip
def test_each_part_of_a_recipe_names_its_source(
    found: ModelMetadata, settings: PartialRecipe, sources: dict[str, str]
) -> None:
    assert resolution_of(found, settings).require().sources == sources


def test_max_lengths() -> None:
    assert resolution_of(BGE, PartialRecipe(max_length=512)).require().max_length == 512
    reranker = qwen(name="Qwen3 Reranker 0.6B")
    assert resolution_of(reranker, PartialRecipe(max_length=40960)).require().max_length == 40960
    assert "max_length is 8192, and the model can read 40960" in " ".join(resolution_of(reranker).notes)
    small = wordpiece(name="all-MiniLM-L6-v2", block_count=6, embedding_length=384)
    assert resolution_of(small).require().max_length == 256
    assert resolution_of(small, PartialRecipe(max_length=512)).require().max_length == 512
    assert resolution_of(xlmr(context_length=0, **HEAD)).require().max_length == 512
    assert (
        resolution_of(metadata("modern-bert", context_length=16384, classifier_pooling="mean", **MODERN_HEAD))
        .require()
        .max_length
        == 16384
    )
    assert resolution_of(qwen(name="Qwen3 Reranker 0.6B", context_length=2048)).require().max_length == 2048


def test_settings_of_embedding_models() -> None:
    own = PartialRecipe(pooling="cls", query_prefix="", document_prefix="d: ", low=0.5)
    scoring = resolution_of(E5_METADATA, own).require()
    assert (scoring.pooling, scoring.query_prefix, scoring.document_prefix) == ("cls", "", "d: ")
    assert scoring.normalization == Normalization("affine", 0.5, 0.95)
    unpooled = metadata("bert")
    assert (
        resolution_of(unpooled, PartialRecipe(method="embedding", pooling="mean")).require().pooling == "mean"
    )
    refusal = resolution_of(unpooled, PartialRecipe(method="embedding")).refusal
    assert refusal is not None and "set pooling" in refusal.next_step
    assert resolution_of(
        E5_METADATA, PartialRecipe(normalization="identity")
    ).require().normalization == Normalization("identity")


def test_no_setting_overrides_a_refusal_by_the_catalog() -> None:
    minilm = wordpiece(name="ms-marco-MiniLM-L6-v2", **HEAD_OUT)
    assert resolution_of(minilm, PartialRecipe(method="cross_encoder")).recipe is None
    assert resolution_of(minilm, PartialRecipe(method="embedding", pooling="cls")).recipe is None


def test_the_description_of_a_recipe() -> None:
    found = qwen(
        name="Qwen3 Reranker 0.6B", file_type="Q8_0", parameters=596_000_000, size_bytes=639_000_000,
        parts=(Path("m.gguf"),), chat_template="{{ messages }}",
    )  # fmt: skip
    text = describe(found, resolution_of(found))
    assert text.splitlines() == [
        "m.gguf",
        "Qwen3 Reranker 0.6B: Q8_0, 596 million parameters, 609 MiB",
        "qwen3 causal model without a rank head (llama-server's own /v1/rerank would answer about 1e-20 for "
        "it), 40,960 tokens (Qwen3-Reranker-0.6B)",
        "scored as a causal language model with a prompt: its raw score is logit('yes') - "
        "logit('no'); the score is its sigmoid, the probability of 'yes' rather than 'no'",
        "  method: causal_lm (catalog)",
        "  max_length: 8,192 tokens for query and document together (method default)",
        '  template: "<|im_start|>system\\nJudge whether the Document meets the requirements based on '
        'th…" (catalog)',
        '  labels: "yes", "no" (catalog)',
        "  normalization: sigmoid (method default)",
        f'  instruction: "{INSTRUCTION}" (catalog)',
        "note: max_length is 8192, and the model can read 40960 tokens; set max_length to use more",
    ]
    as_json = describe_json(found, resolution_of(found))
    assert (as_json["model"], as_json["scorable"], as_json["refusal"]) == ("Qwen3-Reranker-0.6B", True, None)
    recipe = as_json["recipe"]
    assert (recipe["method"], recipe["labels"], recipe["sources"]["labels"]) == (
        "causal_lm", ["yes", "no"], "catalog",
    )  # fmt: skip
    assert as_json["scoring"]["way"] == "judge"
    assert as_json["metadata"]["has_chat_template"] is True
    assert "tokens" not in as_json["metadata"]


@pytest.mark.parametrize("one", [one for one in RENAMED if one.of == "rerankd inspect"], ids=str)
def test_inspect_has_each_deprecated_name_and_the_new_one(one: Renamed) -> None:
    found = CHAT if one.new.startswith("refusal") else BGE
    as_json = describe_json(found, resolution_of(found))
    old, new = (
        reduce(lambda value, name: value[name], path.split("."), as_json) for path in (one.old, one.new)
    )
    if one.new == "recipe":
        assert old["pooling"] == new["pooling"]
    else:
        assert old == (old_value("method", new) if one.new == "recipe.method" else new)


def test_the_descriptions_of_a_refusal_and_of_an_embedding_model() -> None:
    chat = describe(CHAT, resolution_of(CHAT))
    assert "refused: it is a plain language model" in chat
    assert "next step: set template and labels in rerankd.toml" in chat
    as_json = describe_json(CHAT, resolution_of(CHAT))
    assert as_json["recipe"] is None and as_json["scoring"] is None
    assert as_json["refusal"] == {key: as_json[key] for key in ("reason", "next_step", "settings")}
    embedding = describe(E5_METADATA, resolution_of(E5_METADATA))
    for line in (
        "  max_length: 512 tokens for a text (file)",
        "  normalization: affine (catalog)",
        "  low: 0.7 (catalog)",
        '  query_prefix: "query: " (catalog)',
    ):
        assert line in embedding.splitlines()
    assert "encoder with a rank head" in describe(BGE, resolution_of(BGE))
    headed = qwen(**PAIR_HEAD)
    assert "causal model with a rank head" in describe(headed, resolution_of(headed))


def test_describe_json_is_json(tmp_path: Path) -> None:
    import json

    from ggufs import write
    from rerankd.formats import gguf_metadata

    found = gguf_metadata.read(write(tmp_path / "m.gguf"))
    assert (
        json.loads(json.dumps(describe_json(found, resolution_of(found))))["metadata"]["architecture"]
        == "qwen3"
    )


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0 bytes"), (999, "999 bytes"), (1023 * 1024, "1023 KiB"), (5 << 30, "5 GiB")]
)
def test_size_words(size: int, words: str) -> None:
    assert size_words(size) == words


_NAMES = ["", "Model", "My Reranker", *(name for e in catalog.known().entries for name in e.match.names)]
_ARCHITECTURES = [
    "bert",
    "modern-bert",
    "neo-bert",
    "jina-bert-v2",
    "nomic-bert",
    "llama-embed",
    "qwen2",
    "qwen3",
]


@given(data=st.data())
def test_without_settings_the_result_is_a_recipe_or_a_refusal_and_never_an_error(data: st.DataObject) -> None:
    """And a recipe has all parts that an engine needs."""
    entry = data.draw(st.sampled_from([None, *catalog.known().entries]))
    sizes = (entry.match.block_count, entry.match.embedding_length) if entry is not None else (12, 384)
    choose = {
        "name": _NAMES, "finetune": _NAMES, "block_count": [sizes[0], 7], "embedding_length": [sizes[1], 64],
        "pooling": [None, "none", "mean", "cls", "last", "rank"],
        "classifier_pooling": [None, "none", "mean", "cls", "last", "rank"],
        "output_labels": [(), ("yes", "no"), ("LABEL_0",), ("a", "b", "c")],
        "rerank_template": ["", QWEN3_FILE_TEMPLATE, "{query}{document}", "{query}"],
        "causal_attention": [None, False, True], "has_cls": [False, True], "has_cls_output": [False, True],
        "cls_output_rows": [0, 1, 2, 3], "has_cls_norm": [False, True], "decision_blocks": [0, 2],
        "hidden_activation": ["", "gelu", "silu", "relu"], "token_type_count": [0, 1, 2],
        "tokenizer_model": ["", "t5", "bert", "gpt2"], "format": ["gguf", "safetensors"],
        "kind": ["model", "adapter"], "tags": [(), ("reranker",), ("sentence-similarity",)],
        "control_tokens": [SPECIAL, {}],
    }  # fmt: skip
    drawn = {key: data.draw(st.sampled_from(values), key) for key, values in choose.items()}
    architecture = data.draw(st.sampled_from(_ARCHITECTURES))
    resolved = resolution_of(metadata(architecture, **drawn))
    recipe = resolved.recipe
    if resolved.refusal is not None:
        assert resolved.refusal.reason and resolved.refusal.next_step
        return
    assert recipe is not None
    assert {"method", "max_length", "normalization"} <= recipe.sources.keys()
    if recipe.method == "causal_lm":
        assert recipe.template and all(recipe.labels)
    elif recipe.method == "embedding":
        assert recipe.pooling in ("mean", "cls", "last") and not drawn["has_cls_output"]
    elif architecture == "llama-embed":  # one row, without a layer before it
        assert drawn["has_cls_output"]
        assert drawn["cls_output_rows"] in ((0, 1) if drawn["format"] == "gguf" else (1, 2))
    else:
        rows = (1,) if drawn["format"] == "gguf" else (1, 2)
        assert drawn["has_cls"] and drawn["cls_output_rows"] in rows and not drawn["decision_blocks"]


def test_the_explanation_names_the_normalization_that_is_used() -> None:
    logit, cosine = Normalization("sigmoid"), Normalization("affine", 0.7, 0.9)
    said = {
        (method, how.name): explain(Recipe(method, 512, how, labels=("yes", "no")))
        for method in get_args(Method)
        for how in (logit, cosine, Normalization("identity"))
    }
    assert said["cross_encoder", "sigmoid"].endswith("one logit for each pair; the score is its sigmoid")
    assert said["embedding", "affine"].endswith("document; the score maps 0.7…0.9 to 0…1")
    assert said["causal_lm", "identity"].endswith("logit('no'); the score is the same number, limited to 0…1")
    assert len({*said.values()}) == 15
    assert "raw / (the number of these tokens), limited" in said["late_interaction", "identity"]
