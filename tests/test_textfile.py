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
        assert list(stream) == ["für\r\n", "zwei\ufeff"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-be", "utf-32-be"])
def test_the_byte_order_mark_selects_the_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "text"
    text = "für\nzwei\x85\u2028\fdrei"
    path.write_bytes((("\ufeff" if encoding.endswith("be") else "") + text).encode(encoding))
    assert text_files.read(path) == text
    with text_files.lines(path) as stream:
        assert list(stream) == ["für\n", "zwei\x85\u2028\fdrei"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_the_zeros_of_ascii_select_the_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "text"
    text = '{"für": "漢"}\nzwei'
    path.write_bytes(text.encode(encoding))
    assert text_files.read(path) == text
    with text_files.lines(path) as stream:
        assert list(stream) == ['{"für": "漢"}\n', "zwei"]
    for short in ("", "a", "ab", "abc"):
        assert text_files.decode(short.encode()) == short


def test_a_settings_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rerankd.toml"
    path.write_text("port = 4321\n", encoding="utf-8-sig")
    assert config.from_machine(path=path).port == 4321
    path.write_text("port = 4322\n", encoding="utf-16")  # as Windows PowerShell 5 redirects
    assert config.from_machine(path=path).port == 4322
    path.write_bytes("port = 4321 # für\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="can't be read"):
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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_documents_stay_whole_in_each_encoding(home: Path, tmp_path: Path, encoding: str) -> None:
    """The mark was scored as part of the first document; form feeds, U+0085, U+2028 and carriage returns
    inside a line split documents."""
    lines = ["a bear of China", "page one\fpage two\x85three\u2028four", "a kind\rof bread"]
    path = tmp_path / "documents.txt"
    path.write_text("\r\n".join(lines), encoding=encoding, newline="")
    ended = rerankd("rerank", "panda?", str(path), "--json", "--model", "builtin:e5", home=home)
    assert ended.returncode == 0, ended.stderr
    rows = {row["index"]: row["text"] for row in json.loads(ended.stdout)["results"]}
    assert [rows[at] for at in range(3)] == lines


def test_line_numbers_count_line_feeds(home: Path) -> None:
    jsonl = '\ufeff{"text": "one\u2028two"}\r\n\n"three"\nno JSON'
    ended = rerankd("rerank", "panda?", "--jsonl", home=home, stdin=jsonl)
    assert "-, line 4: not valid JSON" in ended.stderr
