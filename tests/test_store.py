"""The model store: names, folders, and an index that may be missing or damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankd.errors import ModelFileError, UnknownModel
from rerankd.hub import builtin
from rerankd.hub.model_ref import parse
from rerankd.hub.store import Record, Store, folder_of, name_of

_WORDS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.]{0,8}", fullmatch=True)


def put(store: Store, name: str, pulled_at: float, data: bytes = b"GGUF") -> Record:
    """Add a model with one file."""
    folder = folder_of(parse(name))
    with store.locked(folder, lambda: None):
        staged = store.staging(folder)
        staged.mkdir(parents=True)
        (staged / "m.gguf").write_bytes(data)
        record = Record(name, folder, ("m.gguf",), len(data), pulled_at, "hf:org/repo", "c0ffee", ("ab",))
        store.add(record, staged)
    return record


@pytest.mark.parametrize(
    ("ref", "folder"),
    [
        ("Qwen3-Reranker-8B:Q4_K_M", "qwen3-reranker-8b--q4_k_m"),
        ("Qwen/Qwen3-Reranker-0.6B", "qwen3-reranker-0.6b"),
        ("hf:Org/Repo", "hf--Org--Repo"),
        ("ms:Org/Repo:Q8_0", "ms--Org--Repo--q8_0"),
        ("hf:Org/Repo/a/b.gguf", "hf--Org--Repo--a--b.gguf"),
    ],
)
def test_the_folder_of_a_reference(ref: str, folder: str) -> None:
    assert folder_of(parse(ref)) == folder
    assert folder_of(parse(name_of(folder))) == folder


@given(st.sampled_from(["hf", "ms"]), _WORDS, _WORDS, st.just("") | _WORDS)
def test_the_reference_of_a_folder(hub: str, org: str, repo: str, quant: str) -> None:
    text = f"{hub}:{org}/{repo}" + (f":{quant.lower()}" if quant else "")
    assert name_of(folder_of(parse(text))) == text


def test_the_index_is_rebuilt_when_it_is_missing_or_damaged(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second = put(store, "hf:org/repo:q8_0", 1), put(store, "bge-m3", 2)
    assert store.records() == (second, first)
    for damage in (b"", b"{", b"[]", b'{"models": []}', b'{"models": {"bge-m3": {"name": 1}}}', b"\xff"):
        store.index.write_bytes(damage)
        assert [record.name for record in store.records()] == ["bge-m3", "hf:org/repo:q8_0"]
    store.index.unlink()
    assert store.find("BAAI/bge-m3") is not None
    put(store, "bge-m3", 3)
    assert store.index.is_file()
    assert store.default() == "hf:org/repo:q8_0" or store.default() == "bge-m3"


def test_index_entries_that_contradict_the_files_are_ignored(tmp_path: Path) -> None:
    store = Store(tmp_path)
    record = put(store, "bge-m3", 1)
    (store.path(record)).write_bytes(b"GGUF, and more")
    (changed,) = store.records()
    assert (changed.size_bytes, changed.sha256) == (14, ())
    store.path(record).unlink()
    assert store.records() == ()
    made = store.models / "my-model"
    made.mkdir()
    (made / "x.gguf").write_bytes(b"GGUF")
    assert store.locate("my-model", lambda *_: None) == made / "x.gguf"


def test_the_model_pulled_last_is_the_default(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.default() == builtin.NAME
    put(store, "bge-m3", 2)
    put(store, "bge-reranker-v2-m3", 1)
    assert store.default() == "bge-m3"
    record = store.find("bge-m3")
    assert record is not None
    store.remove(record)
    assert store.default() == "bge-reranker-v2-m3"
    assert store.find("bge-m3") is None


def test_the_quantisation_can_be_omitted_if_only_one_was_pulled(tmp_path: Path) -> None:
    store = Store(tmp_path)
    put(store, "qwen3-reranker-8b:q4_k_m", 1)
    found = store.find("Qwen3-Reranker-8B")
    assert found is not None
    assert store.find("qwen3-reranker-8b:q8_0") is None
    put(store, "qwen3-reranker-8b:q8_0", 2)
    with pytest.raises(UnknownModel, match="more than once"):
        store.find("qwen3-reranker-8b")


def test_an_existing_file_takes_precedence_over_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "home")
    record = put(store, "bge-m3", 1)
    monkeypatch.chdir(tmp_path)
    assert store.locate("bge-m3", lambda *_: None) == store.path(record)
    (tmp_path / "bge-m3").mkdir()  # an empty folder is not a model
    assert store.locate("bge-m3", lambda *_: None) == store.path(record)
    (tmp_path / "bge-m3").rmdir()
    (tmp_path / "bge-m3").write_bytes(b"GGUF")
    assert store.locate("bge-m3", lambda *_: None) == Path("bge-m3")


@pytest.mark.parametrize(
    ("model", "error", "says"),
    [
        ("bge-m3", UnknownModel, "rerankd pull bge-m3"),
        ("hf:org/repo", UnknownModel, "rerankd pull hf:org/repo"),
        ("bge-m4", UnknownModel, "Did you mean bge-m3?"),
        ("quite-other", UnknownModel, "rerankd list --catalog"),
        ("org/repo", ModelFileError, "rerankd pull hf:org/repo"),
        ("./m", ModelFileError, "does not exist"),
        ("builtin:e6", UnknownModel, "builtin:e5"),
    ],
)
def test_a_missing_model_names_the_command_that_gets_it(
    tmp_path: Path, model: str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error) as caught:
        Store(tmp_path).locate(model, lambda *_: None)
    assert says in str(caught.value)
