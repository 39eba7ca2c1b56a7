"""Request bodies that no client should send, and that some do."""

from __future__ import annotations

import json

from hypothesis import strategies as st

_DEEP = 100_000
CORPUS: list[bytes] = [
    b"",
    b" ",
    b"\x00",
    b"\xff\xfe\x00",
    b"null",
    b"true",
    b"1",
    b'"text"',
    b"[]",
    b"{}",
    b"{",
    b'{"query": "q"',
    b'{"query": "q", "documents": ["a"]} trailing',
    b"[" * _DEEP,
    b"[" * _DEEP + b"]" * _DEEP,
    b'{"a":' * _DEEP + b"1" + b"}" * _DEEP,
    b'{"query": "q", "documents": ' + b"[" * _DEEP + b"]" * _DEEP + b"}",
    b'{"query": "q", "documents": ["a"], "top_n": ' + b"9" * 5000 + b"}",
    b'{"query": "q", "documents": ["a"], "top_n": 1e999}',
    b'{"query": "q", "documents": ["a"], "top_n": NaN}',
    b'{"query": "q", "documents": ["a"], "top_n": -1}',
    b'{"query": "q", "documents": ["a"], "top_n": "1"}',
    b'{"query": "q", "documents": ["a"], "top_n": 1.5}',
    b'{"query": "q", "documents": ["a"], "top_n": [1]}',
    b'{"query": "q", "documents": ["a"], "raw_scores": "perhaps"}',
    b'{"query": "q", "documents": ["a"], "max_tokens_per_doc": 99999999999999999999}',
    b'{"query": "q", "documents": ["a b c d"], "max_tokens_per_doc": 1}',
    b'{"query": "q", "documents": ["a b c d"], "max_chunks_per_doc": 1000000, "overlap_tokens": 1000000}',
    b'{"query": "q", "documents": ["' + b"word " * 3000 + b'"], "max_chunks_per_doc": 9}',
    b'{"query": "q", "documents": ["' + b"word " * 3000 + b'"], "truncate": false}',
    b'{"query": "' + b"word " * 3000 + b'", "documents": ["a"]}',
    b'{"query": "\\ud800", "documents": ["\\udfff\\ud800", "\\u0000"], "return_documents": true}',
    '{"query": "q", "documents": ["\U0001f43c\u200d\u202e", "\ufeff", ""]}'.encode(),
    b'{"query": "", "documents": ["a"]}',
    b'{"query": "q", "documents": []}',
    b'{"query": "q", "documents": [null]}',
    b'{"query": "q", "documents": [1, true]}',
    b'{"query": "q", "documents": [{}]}',
    b'{"query": "q", "documents": [{"text": null}]}',
    b'{"query": "q", "documents": {"text": "a"}}',
    b'{"query": "q", "documents": "a"}',
    b'{"query": ["q"], "documents": ["a"]}',
    b'{"query": {"text": "q"}, "documents": ["a"]}',
    b'{"query": "q", "query": 1, "documents": ["a"]}',
    b'{"query": "q", "texts": ["a"], "documents": ["a"]}',
    b'{"query": "q", "documents": ["</s><s>", "<|im_end|>"], "model": ""}',
    b'{"query": "q", "documents": ["a"], "model": "../../etc/passwd"}',
    b'{"query": "q", "documents": ["a"], "model": "' + b"m" * 10_000 + b'"}',
    b'{"query": "q", "documents": [' + b'"a",' * 9999 + b'"a"]}',
    b'{"query": "q", "documents": [' + b'"a",' * 10_000 + b'"a"]}',
    b'{"query": "q", "documents": [' + b"[],".join([b""] * 1_500_000) + b"[]]}",
    "query=q&documents=a".encode("utf-16"),
    b"query=q&documents=a",
    json.dumps({"query": "q", "documents": ["a"]}).encode("utf-16"),
]

_FIELDS = ("query", "documents", "texts", "text", "top_n", "top_k", "model", "instruction", "normalize")
_OPTIONS = ("return_documents", "truncate", "max_tokens_per_doc", "max_chunks_per_doc", "overlap_tokens")
_keys = st.sampled_from((*_FIELDS, *_OPTIONS, "raw_scores", "x"))
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("q"),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(_keys | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
_plausible = st.fixed_dictionaries(
    {
        "query": st.text(min_size=1, max_size=20) | _values,
        "documents": st.lists(_values, max_size=4) | _values,
    }
)
_objects = st.dictionaries(_keys, _values, max_size=5) | st.builds(
    lambda base, more: {**more, **base}, _plausible, st.dictionaries(_keys, _values, max_size=3)
)


def _encoded(value: object) -> bytes:
    return json.dumps(value).encode()


def _damaged(data: bytes, at: int, put: bytes) -> bytes:
    at %= len(data) + 1
    return data[:at] + put + data[at + len(put) :]


bodies = (
    st.binary(max_size=60)
    | st.sampled_from(CORPUS[:30])
    | st.builds(_encoded, _objects | _values)
    | st.builds(_damaged, st.builds(_encoded, _objects), st.integers(0, 500), st.binary(max_size=3))
)
