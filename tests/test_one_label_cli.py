"""Commands for models with one label: `pull`, `inspect`, `list`, `rerank`, `remove` with a patched copy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fake_hub import fake_hub
from rerankd.hub.patched_copies import PatchedCopies
from rerankd.toml_values import toml
from support import GOLDEN, golden, rerankd

REPO = "org/one-label"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    template = toml("\x1e".join(golden("qwen3-yes")["pieces"]))
    path = tmp_path / "my.toml"
    path.write_text(f'[scoring]\nlabels = ["Yes"]\nlogit_sigma = 5\ntemplate = {template}\n')
    return path


def copies(home: Path) -> list[Path]:
    return list(PatchedCopies.within(home / "models").sources())


def test_a_pull_makes_the_copy_and_remove_deletes_it(tmp_path: Path, config: Path) -> None:
    home = tmp_path / "home"
    options = ("--config", str(config))
    with fake_hub(repos={REPO: {"model.gguf": (GOLDEN / "qwen3-headless.gguf").read_bytes()}}) as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
        pulled = rerankd("pull", f"hf:{REPO}", *options, home=home, **env)
    assert pulled.returncode == 0, pulled.stderr
    assert "writing a patched copy of model.gguf" in pulled.stderr
    (made,) = copies(home)
    inode = (made / "model.gguf").stat().st_ino
    scored = rerankd("rerank", "a query", *options, home=home, stdin="a document\n")
    assert scored.returncode == 0, scored.stderr
    assert copies(home) == [made] and (made / "model.gguf").stat().st_ino == inode
    told = rerankd("inspect", f"hf:{REPO}", *options, home=home).stdout
    assert "its raw score is logit('Yes'); the score is sigmoid(raw / 5)" in told
    assert f"in which the row of the unused token 1663 is zero in the output matrix; it is {made}" in told
    (row,) = json.loads(rerankd("list", "--json", *options, home=home).stdout)
    assert row["patched_bytes"] > row["size_bytes"] > 0
    removed = rerankd("remove", f"hf:{REPO}", *options, home=home)
    assert "was deleted (1.66 MiB)" in removed.stderr
    assert copies(home) == []


def test_a_file_outside_the_store_has_its_copy_in_the_data_folder(tmp_path: Path, config: Path) -> None:
    home, options = tmp_path / "home", ("--config", str(config))
    path = tmp_path / "mine.gguf"
    path.write_bytes((GOLDEN / "qwen3-headless.gguf").read_bytes())
    told = rerankd("inspect", str(path), *options, home=home).stdout
    assert "it is made when the model is loaded first and takes 850 KiB of disk space" in told
    assert copies(home) == []
    checked = rerankd("inspect", "--check", "--json", str(path), *options, home=home)
    assert checked.returncode == 0, checked.stderr
    assert len(copies(home)) == 1
    listed = rerankd("list", *options, home=home)
    assert f"A patched copy of {path} takes" in listed.stderr and f"rerankd remove {path}" in listed.stderr
    removed = rerankd("remove", str(path), *options, home=home)
    assert "The patched copy of mine.gguf was deleted" in removed.stderr
    assert copies(home) == [] and path.exists()
