"""Upgrade from release 0.1: its settings file, its pulled models and its runtime folder keep working.

`from_0_1/` contains a settings file of 0.1 and the index file of its model store.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from rerankd import config, processes
from rerankd.deprecated_names import RENAMED
from rerankd.errors import ConfigError
from support import GOLDEN, ROOT, start_serving

LEFT = ROOT / "tests" / "from_0_1"
FIRST, SECOND = "bge-reranker-v2-m3:q8_0", "judge"


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """The folders of a 0.1 user: `home` with the data, `config` with the settings."""
    models = tmp_path / "home" / "models"
    for folder, file, model in (
        ("bge-reranker-v2-m3--q8_0", "bge-reranker-v2-m3-Q8_0.gguf", "xlmr-head.gguf"),
        ("hf--org--judge--f32", "judge-f32.gguf", "qwen3-headless.gguf"),
    ):
        (models / folder).mkdir(parents=True)
        shutil.copy(GOLDEN / model, models / folder / file)
    shutil.copy(LEFT / "index.json", models / "index.json")
    (tmp_path / "config" / "rerankd").mkdir(parents=True)
    shutil.copy(LEFT / "rerankd.toml", tmp_path / "config" / "rerankd" / "rerankd.toml")
    return tmp_path


@pytest.fixture
def orphan() -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """The runtime folder of a 0.1 service that was killed, and its engine, which still runs."""
    with (
        tempfile.TemporaryDirectory(prefix="r") as base,
        subprocess.Popen(["sleep", "300"], start_new_session=True) as engine,
    ):
        folder = Path(base) / "rerankd-4194303-3pc06foi"
        folder.mkdir(mode=0o700)
        gone = {"pid": 4194303, "started": "1470852", "command": "python -m rerankd serve"}
        (folder / "owner.json").write_text(json.dumps(gone))
        identity = processes.identify(engine.pid)
        assert identity is not None
        noted = {"pid": engine.pid, "started": identity.started, "command": identity.command}
        (folder / f"{engine.pid}.json").write_text(json.dumps(noted))
        yield folder, engine
        engine.kill()


def test_models_and_settings_of_0_1_are_served(
    left: Path, orphan: tuple[Path, subprocess.Popen[bytes]]
) -> None:
    folder, engine = orphan
    program = start_serving(
        left / "home", XDG_CONFIG_HOME=str(left / "config"), XDG_RUNTIME_DIR=str(folder.parent)
    )
    try:
        key = {"Authorization": "Bearer secret"}
        with httpx.Client(base_url=program.url, headers=key, timeout=60, trust_env=False) as client:
            models = client.get("/v1/status").raise_for_status().json()["models"]
            for name in ("reranker", SECOND):
                body = {"model": name, "query": "what is a panda?", "documents": ["a bear", "bread"]}
                assert len(client.post("/llm/v1/rerank", json=body).raise_for_status().json()["results"]) == 2
        assert [(one["id"], one["state"], one["way"], one["window"]) for one in models] == [
            ("reranker", "ready", "head", 256),
            (SECOND, "ready", "judge", 128),
        ]
        assert engine.wait(10) != 0 and not folder.exists()
    finally:
        program.stop()
        rest = program.process.communicate()[1]
    (warning,) = [line for line in [*program.said, *rest.splitlines()] if "names of 0.1" in line]
    file = left / "config" / "rerankd" / "rerankd.toml"
    assert f"{file} in [scoring]: window is now max_length, transform is now normalization" in warning
    assert 'in [models.judge]: way is now method, method = "judge" is now "causal_lm"' in warning


def test_each_deprecated_name_works_and_is_logged(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    file = tmp_path / "rerankd.toml"
    values = {"method": "head", "max_length": 99, "normalization": "identity"}
    for one in (one for one in RENAMED if one.kind == "setting"):
        value = values[one.new]
        file.write_text(f"[scoring]\n{one.old} = {json.dumps(value)}\n")
        scoring = config.from_machine({}, file).scoring
        assert getattr(scoring, one.new) == {"head": "cross_encoder"}.get(str(value), value)
    for one in (one for one in RENAMED if one.kind == "value"):
        caplog.clear()
        file.write_text(f'[models.a]\n{one.of} = "{one.old}"\n')
        assert getattr(config.from_machine({}, file).models["a"], one.of) == one.new
        assert f'{file} in [models.a]: {one.of} = "{one.old}" is now "{one.new}"' in caplog.text
    caplog.clear()
    file.write_text('[scoring]\nmethod = "embedding"\nmax_length = 99\n')
    config.from_machine({}, file)
    assert not caplog.records


def test_a_setting_under_both_names_is_an_error() -> None:
    with pytest.raises(ConfigError, match="window is the old name of max_length, which is set too"):
        config.load("[scoring]\nwindow = 99\nmax_length = 98\n", {}, {})
