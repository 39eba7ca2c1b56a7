"""GGUF headers: the metadata that is read, and the errors for damaged, truncated and hostile files."""

from __future__ import annotations

import io
import os
import struct
import time
from pathlib import Path

import gguf as reference
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ggufs import VOCABULARY, strings, write
from rerankd.errors import ModelFileError
from rerankd.formats import gguf_metadata
from rerankd.formats.gguf_header import HEADER_LIMIT, TENSOR_TYPES


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(
        tmp_path_factory.mktemp("gguf") / "tiny.gguf",
        tensors={
            "token_embd.weight": (10, 32),
            "cls.output.weight": (2, 32),
            "output.weight": (10, 32),
            "output_norm.weight": (32,),
        },
        extra={
            "general.basename": "Tiny-Reranker",
            "general.file_type": 7,
            "qwen3.pooling_type": 4,
            "qwen3.attention.causal": True,
            "qwen3.classifier.output_labels": ["yes", "no"],
            "tokenizer.chat_template": "chat",
            "tokenizer.chat_template.rerank": "{query}\n{document}",
            "tokenizer.ggml.seperator_token_id": 9,
        },
    )


def test_metadata(tiny: Path) -> None:
    metadata = gguf_metadata.read(tiny)
    assert (metadata.path, metadata.parts, metadata.size_bytes) == (tiny, (tiny,), tiny.stat().st_size)
    assert (metadata.version, metadata.kind, metadata.architecture) == (3, "model", "qwen3")
    assert (metadata.name, metadata.basename) == ("Tiny", "Tiny-Reranker")
    assert (metadata.context_length, metadata.embedding_length, metadata.block_count) == (512, 32, 1)
    assert (metadata.vocabulary_size, len(metadata.tokens), metadata.tokens[3]) == (10, 10, "yes")
    assert (metadata.pooling, metadata.output_labels, metadata.causal_attention) == (
        "rank",
        ("yes", "no"),
        True,
    )
    assert (metadata.has_cls, metadata.has_cls_output, metadata.cls_output_rows, metadata.has_output) == (
        False,
        True,
        2,
        True,
    )
    assert (metadata.chat_template, metadata.rerank_template) == ("chat", "{query}\n{document}")
    assert (metadata.eos_id, metadata.sep_id, metadata.pad_id, metadata.add_bos, metadata.add_eos) == (
        1,
        9,
        None,
        False,
        None,
    )
    assert (metadata.file_type, metadata.quantisation) == ("Q8_0", "F32")
    assert metadata.parameters == 10 * 32 * 2 + 2 * 32 + 32
    assert metadata.tensor_bytes == 4 * metadata.parameters
    assert metadata.control_tokens == {"<s>": 0, "</s>": 1, "<|im_start|>": 2}
    assert metadata.user_defined_tokens == {"<think>": 6}


def test_token_ids(tiny: Path) -> None:
    metadata = gguf_metadata.read(tiny)
    assert [metadata.token_id(text) for text in ("yes", "no", " yes", "😀", "<|im_start|>")] == [
        3,
        4,
        5,
        7,
        2,
    ]
    assert metadata.token_id("ye") is None
    assert metadata.token_id("") is None
    assert [metadata.tokens.index_of(text) for text in VOCABULARY] == list(range(10))


def test_added_tokens_are_stored_as_they_are_written(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", tokens=(*VOCABULARY, "<|two words|>"))
    assert gguf_metadata.read(path).token_id("<|two words|>") == len(VOCABULARY)


def test_a_token_inside_another_token_is_not_found(tmp_path: Path) -> None:
    disguised = "a" + struct.pack("<Q", 3).decode() + "yes"
    path = write(tmp_path / "m.gguf", tokens=(disguised, *VOCABULARY))
    assert gguf_metadata.read(path).token_id("yes") == 4


def test_metadata_is_read_from_a_stream_without_seek(tiny: Path) -> None:
    whole = tiny.read_bytes()

    class Pipe(io.RawIOBase):
        at = 0

        def read(self, count: int = -1) -> bytes:
            assert count >= 0
            data = whole[self.at : self.at + count]
            self.at += len(data)
            return data

    from_stream = gguf_metadata.read_streams([(Pipe(), len(whole), tiny)])
    assert from_stream == gguf_metadata.read(tiny)


def test_a_vocabulary_larger_than_the_first_read(tmp_path: Path) -> None:
    tokens = [*VOCABULARY, *(f"token number {i}" for i in range(60_000)), "last"]
    metadata = gguf_metadata.read(write(tmp_path / "m.gguf", tokens=tokens))
    assert metadata.token_id("last") == len(tokens) - 1
    assert metadata.tokens.index_of("token number 59999") == len(tokens) - 2


def test_tensor_types_match_the_reference_library() -> None:
    known = {int(kind): (kind.name, *sizes) for kind, sizes in reference.constants.GGML_QUANT_SIZES.items()}
    del known[9]  # Q8_1: an older library has a wrong size for it; files never contain it
    assert {kind: TENSOR_TYPES[kind] for kind in known} == known


def test_split_files(tmp_path: Path) -> None:
    shapes = {f"blk.{i}.weight": (4, 32) for i in range(6)}
    write(tmp_path / "m.gguf", tensors=shapes, split_max_tensors=2)
    names = [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    whole = gguf_metadata.read(tmp_path / names[0])
    assert whole.parameters == 6 * 4 * 32
    assert whole.size_bytes == sum((tmp_path / name).stat().st_size for name in names)
    assert [part.name for part in whole.parts] == names
    last = gguf_metadata.read(tmp_path / names[2])
    assert (last.architecture, last.parameters, last.token_id("yes")) == ("qwen3", whole.parameters, 3)

    (tmp_path / names[0]).unlink()
    (tmp_path / names[1]).unlink()
    with pytest.raises(ModelFileError, match=r"m-00001-of-00003.gguf, m-00002-of-00003.gguf. Download"):
        gguf_metadata.read(tmp_path / names[2])
    for name in ("renamed.gguf", "m-00001-of-00002.gguf"):
        last_part = next(tmp_path.iterdir())
        with pytest.raises(ModelFileError, match="rename the parts"):
            gguf_metadata.read(last_part.rename(tmp_path / name))


def test_a_truncated_download_reports_how_much_is_missing(tiny: Path, tmp_path: Path) -> None:
    whole = tiny.read_bytes()
    path = tmp_path / "m.gguf"
    path.write_bytes(whole[:-1000])
    with pytest.raises(ModelFileError, match=r"1,000 of .* bytes are missing; download it again"):
        gguf_metadata.read(path)
    path.write_bytes(whole[:500])
    with pytest.raises(ModelFileError, match="truncated or damaged; download it again"):
        gguf_metadata.read(path)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\n <HTML>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git-LFS pointer"),
        (struct.pack("<Q", 20) + b'{"a":{"dtype":"F32"}}', "safetensors"),
        (b"PK\x03\x04rest", "PyTorch"),
        (b"tjgg\1\0\0\0", "older than GGUF"),
        (b'{"error": "no"}', "JSON"),
        (b"\0" * 100, "zeros"),
        (b"MZ whatever", "does not begin with the letters GGUF"),
        (b"GGUF\1\0\0\0" + b"\0" * 16, "version 1"),
        (b"GGUF\0\0\0\3" + b"\0" * 16, "big-endian"),
        (b"GGUF\x63\0\0\0" + b"\0" * 16, "version 99"),
        (b"GGUF", "after the end"),
    ],
)
def test_the_error_names_what_the_file_is_instead_of_a_model(
    tmp_path: Path, start: bytes, words: str
) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(start)
    with pytest.raises(ModelFileError, match=words):
        gguf_metadata.read(path)


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="folder"):
        gguf_metadata.read(tmp_path)
    with pytest.raises(ModelFileError, match="does not exist"):
        gguf_metadata.read(tmp_path / "none.gguf")
    with pytest.raises(ModelFileError, match="can't be read"):
        gguf_metadata.read("a\0b")
    with pytest.raises(ModelFileError, match="can't be read"):
        gguf_metadata.read(tmp_path / ("x" * 300))


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    path.chmod(0)
    with pytest.raises(ModelFileError, match="permission denied"):
        gguf_metadata.read(path)


def test_a_named_pipe_is_an_error_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.gguf")
    with pytest.raises(ModelFileError, match="not a regular file"):
        gguf_metadata.read(tmp_path / "m.gguf")


def header(*items: bytes, keys: int | None = None, tensors: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, len(items) if keys is None else keys) + b"".join(items)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


ARCH = pair(b"general.architecture", 8, text(b"qwen3"))


def info(name: bytes, dims: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (header(), "no architecture"),
        (header(keys=1 << 60), "damaged"),
        (header(tensors=1 << 60), "damaged"),
        (header(struct.pack("<Q", 1 << 62)), "after the end"),
        (header(pair(b"a", 9, struct.pack("<IQ", 8, 1 << 61))), "declares .* strings"),
        (header(pair(b"a", 9, struct.pack("<IQ", 4, 1 << 61))), "after the end"),
        (header(pair(b"a", 9, struct.pack("<IQ", 9, 1))), "unknown type 9"),
        (header(pair(b"a", 77, b"")), "unknown type 77"),
        (header(ARCH, ARCH), "twice"),
        (header(pair(b"general.architecture", 4, b"\1\0\0\0")), "must be a string"),
        (header(ARCH, pair(b"qwen3.context_length", 8, text(b"x"))), "must be an integer"),
        (header(ARCH, pair(b"qwen3.context_length", 7, b"\1")), "must be an integer"),
        (header(ARCH, pair(b"qwen3.pooling_type", 4, b"\x09\0\0\0")), "unknown pooling 9"),
        (header(ARCH, pair(b"tokenizer.ggml.add_bos_token", 8, text(b"x"))), "true or false"),
        (header(ARCH, pair(b"general.alignment", 4, struct.pack("<I", 48))), "alignment"),
        (header(ARCH, pair(b"general.alignment", 4, struct.pack("<I", 0))), "alignment"),
        (header(ARCH, info(b"a", (1 << 40, 1 << 40)), keys=1, tensors=1), "impossible"),
        (header(ARCH, info(b"a", (33,), kind=8), keys=1, tensors=1), "impossible"),
        (header(ARCH, info(b"a", (32,), offset=7), keys=1, tensors=1), "impossible"),
        (header(ARCH, info(b"a", (1,) * 5), keys=1, tensors=1), "5 dimensions"),
        (header(ARCH, info(b"a", (32,)), info(b"a", (32,)), keys=1, tensors=2), "twice"),
        (header(ARCH, info(b"a", (1 << 50,)), keys=1, tensors=1), "bytes are missing"),
    ],
)
def test_headers_with_impossible_values(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match=words):
        gguf_metadata.read(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (header(pair(b"a", 9, struct.pack("<IQ", 8, 1 << 30))), "declares 1,073,741,824 strings"),
        (header(pair(b"a", 9, struct.pack("<IQ", 8, 1 << 22))), "no architecture"),
        (
            header(
                *[pair(b"a%d" % i, 9, struct.pack("<IQ", 8, 1 << 20)) + b"\0" * (8 << 20) for i in range(5)]
            ),
            "declares 1,048,576 strings",
        ),
        (header(struct.pack("<Q", HEADER_LIMIT)), "larger than 128 MiB"),
        (header(pair(b"a", 9, struct.pack("<IQ", 10, 1 << 29))), "larger than 128 MiB"),
        (header(keys=1 << 15), "declares 32,768 keys"),
        (header(tensors=1 << 17), "declares .* 131,072 tensors"),
    ],
    ids=range(7),
)
def test_a_huge_hostile_file_is_rejected_quickly(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    os.truncate(path, 1 << 33)  # sparse: 8 GiB of zeros after the header
    began = time.monotonic()
    with pytest.raises(ModelFileError, match=words):
        gguf_metadata.read(path)
    assert time.monotonic() - began < 10


def test_a_file_that_declares_more_strings_than_its_size_allows_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(header(pair(b"a", 9, struct.pack("<IQ", 8, 100))) + b"\0" * 400)
    with pytest.raises(ModelFileError, match="declares 100 strings"):
        gguf_metadata.read(path)


def test_a_last_token_longer_than_one_read() -> None:
    long = b"x" * (3 << 20)
    array = struct.pack("<IQ", 8, 2) + text(b"short") + text(long)
    data = header(ARCH, pair(b"tokenizer.ggml.tokens", 9, array))
    tokens = gguf_metadata.read_streams([(io.BytesIO(data), len(data), Path())]).tokens
    assert (tokens[0], len(tokens[1])) == ("short", len(long))


def read_bytes(data: bytes) -> None:
    """Reading may succeed or raise ModelFileError; anything else is a bug."""
    try:
        metadata = gguf_metadata.read_streams([(io.BytesIO(data), len(data), Path())])
    except ModelFileError as error:
        assert len(str(error)) < 1000
    else:
        metadata.token_id("yes")


@given(st.binary(max_size=400))
@example(b"")
def test_random_bytes_raise_only_model_file_errors(data: bytes) -> None:
    read_bytes(data)
    read_bytes(b"GGUF\3\0\0\0" + data)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=2000)
@given(data=st.data())
def test_mutations_of_a_valid_file_raise_only_model_file_errors(tiny: Path, data: st.DataObject) -> None:
    raw = bytearray(tiny.read_bytes())
    end = len(raw) - 3000  # the header and a little of the weights
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(4, end))
        what = data.draw(st.sampled_from(["byte", "word", "truncate", "drop", "insert"]))
        if what == "byte":
            raw[at] = data.draw(st.integers(0, 255))
        elif what == "word":
            word = data.draw(
                st.one_of(st.integers(0, 20), st.integers(2**62, 2**64 - 1), st.integers(0, 2**33))
            )
            raw[at : at + 8] = struct.pack("<Q", word)
        elif what == "truncate":
            del raw[at:]
        elif what == "drop":
            del raw[at : at + data.draw(st.integers(1, 16))]
        else:
            raw[at:at] = data.draw(st.binary(max_size=16))
        if len(raw) < 10:
            break
        end = min(end, len(raw) - 1)
    read_bytes(bytes(raw))


def test_texts_returns_the_same_strings_as_indexing() -> None:
    kept = strings("a", "", "熊猫", "\u2581the")
    assert kept.texts() == ["a", "", "熊猫", "\u2581the"] == [kept[at] for at in range(len(kept))]
