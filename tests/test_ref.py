"""Model references, and the choice of a repository's files: pure functions, tested by tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankd.errors import UnknownModel
from rerankd.hub.choose_files import RemoteFile, choose, quant_of
from rerankd.hub.model_ref import ModelRef, parse

GB = 10**9


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("qwen3-reranker-0.6b", ModelRef("name", "qwen3-reranker-0.6b")),
        ("qwen3-reranker-8b:q4_k_m", ModelRef("name", "qwen3-reranker-8b", "q4_k_m")),
        ("BAAI/bge-reranker-v2-m3", ModelRef("name", "BAAI/bge-reranker-v2-m3")),
        ("  e5 ", ModelRef("name", "e5")),
        ("hf:org/repo", ModelRef("hf", "org/repo")),
        ("hf:org/repo:Q8_0", ModelRef("hf", "org/repo", "Q8_0")),
        ("hf:org/repo/file.gguf", ModelRef("hf", "org/repo", file="file.gguf")),
        ("hf:org/repo/a b/file.GGUF", ModelRef("hf", "org/repo", file="a b/file.GGUF")),
        (
            "ms:dengcao/Qwen3-Reranker-8B-GGUF:q4_k_m",
            ModelRef("ms", "dengcao/Qwen3-Reranker-8B-GGUF", "q4_k_m"),
        ),
        ("builtin:e5", ModelRef("builtin", "e5")),
        ("model.gguf", ModelRef("path", "model.gguf")),
        ("models/a:b.gguf", ModelRef("path", "models/a:b.gguf")),
        ("./hf:x", ModelRef("path", "./hf:x")),
        ("~/m", ModelRef("path", "~/m")),
        ("/models/x", ModelRef("path", "/models/x")),
        ("a/b/c", ModelRef("path", "a/b/c")),
        ("two words", ModelRef("path", "two words")),
    ],
)
def test_references_are_parsed_and_rendered(text: str, ref: ModelRef) -> None:
    assert parse(text) == ref
    assert str(ref) == text.strip()


def test_the_case_of_a_prefix_does_not_matter() -> None:
    assert parse("Builtin:E5") == ModelRef("builtin", "e5")
    assert parse("HF:Org/Repo:q8_0") == ModelRef("hf", "Org/Repo", "q8_0")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hf:repo", "hf:ORG/REPO:QUANT"),
        ("ms:", "ms:ORG/REPO"),
        ("hf:org/repo/readme.md", "FILE.gguf"),
        ("hf:org/repo:", "hf:ORG/REPO"),
        ("hf:org/repo/../../x.gguf", "can't be a path in a repository"),
        ("https://huggingface.co/org/repo", "Write hf:org/repo."),
        ("https://huggingface.co/org/repo/resolve/main/a.gguf?download=true", "Write hf:org/repo/a.gguf."),
        ("https://www.modelscope.cn/models/org/repo", "Write ms:org/repo."),
    ],
)
def test_an_invalid_reference_is_rejected_with_the_expected_form(text: str, says: str) -> None:
    with pytest.raises(UnknownModel, match="reference") as caught:
        parse(text)
    assert says in caught.value.message


_WORDS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,8}", fullmatch=True)
_REPOS = st.builds("{}/{}".format, _WORDS, _WORDS)
_HUB_REFS = st.builds(ModelRef, st.sampled_from(["hf", "ms"]), _REPOS, st.just("") | _WORDS)
_FILE_REFS = st.builds(
    lambda hub, repo, stem: ModelRef(hub, repo, file=f"{stem}.gguf"),
    st.sampled_from(["hf", "ms"]),
    _REPOS,
    _WORDS,
)
_NAME_REFS = st.builds(ModelRef, st.just("name"), _WORDS, st.just("") | _WORDS).filter(
    lambda ref: not str(ref).lower().endswith(".gguf") and ref.name not in ("hf", "ms", "builtin")
)


@given(_HUB_REFS | _FILE_REFS | _NAME_REFS)
def test_a_rendered_reference_parses_to_itself(ref: ModelRef) -> None:
    assert parse(str(ref)) == ref


@given(st.text())
def test_any_text_is_a_reference_or_rejected_with_a_message(text: str) -> None:
    try:
        assert parse(str(parse(text))) == parse(text)
    except UnknownModel as error:
        assert error.message


def files(*names: str, size: int = GB) -> list[RemoteFile]:
    return [RemoteFile(name, size) for name in names]


MANY = [
    RemoteFile("README.md", 10),
    RemoteFile("mmproj-model-F16.gguf", GB),
    RemoteFile("m-F16.gguf", 16 * GB),
    RemoteFile("m-Q4_K_M.gguf", 5 * GB),
    RemoteFile("m-Q6_K.gguf", 6 * GB),
    RemoteFile("m-Q8_0.gguf", 8 * GB),
]


@pytest.mark.parametrize(
    ("options", "name", "why"),
    [
        ({}, "m-Q8_0.gguf", "default"),
        ({"default": "q4_k_m"}, "m-Q4_K_M.gguf", "default"),
        ({"quant": "f16", "default": "q8_0", "memory_bytes": GB}, "m-F16.gguf", "requested"),
        ({"file": "m-Q6_K.gguf"}, "m-Q6_K.gguf", "requested"),
        ({"memory_bytes": 8 * GB}, "m-Q6_K.gguf", "fits"),
        ({"memory_bytes": 6 * GB}, "m-Q4_K_M.gguf", "fits"),
        ({"memory_bytes": 6 * GB, "default": "Q8_0"}, "m-Q4_K_M.gguf", "fits"),
    ],
)
def test_the_chosen_quantisation(options: dict[str, object], name: str, why: str) -> None:
    choice = choose(MANY, "hf:o/r", **options)  # type: ignore[arg-type]
    assert [file.path for file in choice.files] == [name]
    assert why in choice.why


@pytest.mark.parametrize(
    ("listing", "options", "says"),
    [
        ([], {}, "has no GGUF file"),
        (files("model.safetensors"), {}, "has no GGUF file"),
        (MANY, {"quant": "Q2_K"}, "hf:o/r has no Q2_K. Available files:"),
        (MANY, {"file": "x.gguf"}, "has no file x.gguf"),
        (MANY, {"memory_bytes": GB}, "the smallest is Q4_K_M with 4.66 GiB"),
        (files("a-Q8_0.gguf", "b-Q8_0.gguf"), {"quant": "q8_0"}, "as in hf:o/r/a-Q8_0.gguf"),
        (files("a-Q8_0.gguf", "b-Q8_0.gguf"), {}, "More than one file of hf:o/r matches"),
        (files("a.gguf", "b.gguf"), {}, "More than one file of hf:o/r matches"),
        (files("m-Q8_0-00001-of-00003.gguf", "m-Q8_0-00003-of-00003.gguf"), {}, "only 2 of them"),
    ],
)
def test_a_missing_or_ambiguous_choice_lists_the_available_files(
    listing: list[RemoteFile], options: dict[str, object], says: str
) -> None:
    with pytest.raises(UnknownModel) as caught:
        choose(listing, "hf:o/r", **options)  # type: ignore[arg-type]
    assert says in caught.value.message


def test_all_parts_of_a_split_model_are_chosen() -> None:
    parts = [f"Q8_0/m-Q8_0-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    listing = files(*reversed(parts), "m-F16.gguf")
    assert [file.path for file in choose(listing, "hf:o/r").files] == parts
    assert [file.path for file in choose(listing, "hf:o/r", file=parts[1]).files] == parts


@pytest.mark.parametrize(
    ("stem", "quant"),
    [
        ("bge-reranker-v2-m3-Q8_0", "Q8_0"),
        ("qwen3-reranker-0.6b-q8_0", "Q8_0"),
        ("Qwen3-Reranker-8B.Q4_K_M", "Q4_K_M"),
        ("bge-m3-FP16", "F16"),
        ("m-UD-IQ4_XS", "IQ4_XS"),
        ("m.BF16", "BF16"),
        ("Qwen3-Reranker-8B", ""),
        ("q8_0", "Q8_0"),
    ],
)
def test_the_quantisation_is_read_from_the_file_name(stem: str, quant: str) -> None:
    assert quant_of(stem) == quant


def test_a_quantisation_can_be_named_with_its_prefix() -> None:
    listing = files("m-UD-Q4_K_XL.gguf", "m-Q4_K_M.gguf")
    assert choose(listing, "hf:o/r", quant="ud-q4_k_xl").files[0].path == "m-UD-Q4_K_XL.gguf"
