"""Text files of users: byte order marks, encodings and line separators of all systems."""

from __future__ import annotations

import codecs
import json
import shutil
from pathlib import Path

import pytest

from rerankd import config, text_files
from rerankd.errors import ConfigError
from rerankd.formats import tokenizer
from support import GOLDEN, rerankd


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path: Path, mark: bytes) -> None:
    path = tmp_path / "text"
    path.write_bytes(mark + "für\r\nzwei\ufeff".encode())
    assert text_files.read(path) == "für\r\nzwei\ufeff"
    with text_files.lines(path) as stream:
        assert list(stream) == ["für\n", "zwei\ufeff"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-be", "utf-32-be"])
def test_other_encodings_are_rejected_by_name(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "text"
    path.write_text("\ufefftext" if encoding.endswith("be") else "text", encoding=encoding)
    for reader in (text_files.read, text_files.lines):
        with pytest.raises(ValueError, match=f"it is encoded in {encoding[:6].upper()}; save it as UTF-8"):
            reader(path)
    # Invalid bytes of documents are replaced, but not these encodings.
    with pytest.raises(ValueError, match="save it as UTF-8"):
        text_files.decode(path.read_bytes(), errors="replace")


def test_a_settings_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rerankd.toml"
    path.write_text("port = 4321\n", encoding="utf-8-sig")
    assert config.from_machine(path=path).port == 4321
    path.write_text("port = 4321\n", encoding="utf-16")
    with pytest.raises(ConfigError, match=r"can't be read: it is encoded in UTF-16; save it as UTF-8\."):
        config.from_machine(path=path)


def test_a_tokenizer_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    original = GOLDEN / "bert-pairs" / "tokenizer.json"
    path.write_bytes(codecs.BOM_UTF8 + original.read_bytes())
    size = len(json.loads(original.read_bytes())["model"]["vocab"])
    one, other = (tokenizer.of_file(file, size).encode(["a bear"])[0] for file in (path, original))
    assert one.tolist() == other.tolist() != []


def test_a_checkpoint_whose_json_files_have_byte_order_marks_is_accepted(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / "bert-pairs", folder)
    for path in folder.glob("*.json"):
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    ended = rerankd("inspect", str(folder), home=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_documents_with_byte_order_marks_and_line_separators_stay_whole(home: Path, tmp_path: Path) -> None:
    """The mark was scored as part of the first document; form feeds, U+0085 and U+2028 split documents."""
    lines = ["a bear of China", "page one\fpage two\x85three", "a kind of bread"]
    path = tmp_path / "documents.txt"
    path.write_text("\n".join(lines), encoding="utf-8-sig", newline="\r\n")
    ended = rerankd("rerank", "panda?", str(path), "--json", "--model", "builtin:e5", home=home)
    assert ended.returncode == 0, ended.stderr
    rows = {row["index"]: row["text"] for row in json.loads(ended.stdout)["results"]}
    assert [rows[at] for at in range(3)] == lines

    jsonl = '\ufeff{"text": "one\u2028two"}\n\n"three"\nno JSON'
    ended = rerankd("rerank", "panda?", "--jsonl", home=home, stdin=jsonl)
    assert "-, line 4: not valid JSON" in ended.stderr

    path.write_text("a bear", encoding="utf-16")
    ended = rerankd("rerank", "panda?", str(path), home=home)
    assert (ended.returncode, "it is encoded in UTF-16; save it as UTF-8" in ended.stderr) == (2, True)
