"""Unusual environments: variables that Kubernetes sets, users without a home, untrusted current folders."""

from __future__ import annotations

import ast
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

import sandbox
from rerankd import config
from rerankd.config import Settings
from rerankd.errors import ConfigError
from support import GOLDEN, ROOT, environment

XLMR = str(GOLDEN / "xlmr-head.gguf")
# https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
POD = {
    "RERANKD_SERVICE_HOST": "10.96.0.7",
    "RERANKD_SERVICE_PORT": "11440",
    "RERANKD_SERVICE_PORT_HTTP": "11440",
    "RERANKD_PORT": "tcp://10.96.0.7:11440",
    "RERANKD_PORT_11440_TCP": "tcp://10.96.0.7:11440",
    "RERANKD_PORT_11440_TCP_PROTO": "tcp",
    "RERANKD_PORT_11440_TCP_PORT": "11440",
    "RERANKD_PORT_11440_TCP_ADDR": "10.96.0.7",
    "RERANKD_GPU_SERVICE_HOST": "10.96.0.8",  # a Service rerankd-gpu
    "RERANKD_GPU_PORT": "tcp://10.96.0.8:80",
    "LLAMA_PORT": "tcp://10.96.0.9:8080",
    "LLAMA_SERVICE_HOST": "10.96.0.9",
}
# docker run --link web:rerankd
LINKED = {
    "RERANKD_NAME": "/app/rerankd",
    "RERANKD_ENV_LANG": "C.UTF-8",
    "RERANKD_PORT": "tcp://172.17.0.2:80",
}


def run(*arguments: str, home: Path, **more: object) -> subprocess.CompletedProcess[str]:
    options = {"env": environment(home), "capture_output": True, "text": True, "timeout": 120, **more}
    return subprocess.run(  # type: ignore[no-any-return,call-overload]
        [sys.executable, "-P", "-m", "rerankd", *arguments], stdin=subprocess.DEVNULL, **options
    )


@pytest.mark.parametrize("links", [POD, LINKED], ids=["Kubernetes", "docker --link"])
def test_service_link_variables_are_ignored_with_one_warning(tmp_path: Path, links: dict[str, str]) -> None:
    settings = config.load("", links, {})
    assert settings.port == Settings(home=tmp_path).port
    assert config.service_links(links) == sorted(links)
    done = run("list", "--catalog", home=tmp_path, env=environment(tmp_path, **links))
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert all(name in done.stderr for name in links)


def test_variables_of_the_user_still_count_beside_service_links() -> None:
    links = {**POD, "RERANKD_HOST": "0.0.0.0", "LLAMA_PORT": "8080"} | {"RERANKD_PORT": "9000"}
    assert (config.load("", links, {}).host, config.load("", links, {}).port) == ("0.0.0.0", 9000)
    with pytest.raises(ConfigError, match="RERANKD_PORTT is not a setting"):
        config.load("", {**POD, "RERANKD_PORTT": "1"}, {})
    with pytest.raises(ConfigError, match=r"port = '0\.0\.0\.0:80' can't be used"):
        config.load("", {"RERANKD_PORT": "0.0.0.0:80"}, {})


def sandboxed(*arguments: str, home: Path | None) -> subprocess.CompletedProcess[str]:
    """Run rerankd as a user with no entry in /etc/passwd and no HOME."""
    env = environment(home or Path())
    if home is None:
        del env["RERANKD_HOME"]
    return subprocess.run(
        [*sandbox.container(home or ROOT), sys.executable, "-P", "-m", "rerankd", *arguments],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("arguments", [["--version"], ["list"], ["list", "--catalog"], ["inspect", XLMR]])
def test_a_user_without_a_home_can_use_rerankd_home(tmp_path: Path, arguments: list[str]) -> None:
    done = sandboxed(*arguments, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("model", ["hf:org/x", "ms:org/x"])
def test_a_user_without_a_home_can_pull(model: str) -> None:
    hub = "http://127.0.0.1:9"
    done = subprocess.run(
        [
            *sandbox.bubble("--tmpfs", "/tmp", *sandbox.seen(), "--unsetenv", "HOME"),
            sys.executable,
            "-m",
            "rerankd",
            "pull",
            model,
        ],
        env=environment(Path("/tmp/home"), HF_ENDPOINT=hub, MODELSCOPE_ENDPOINT=hub),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, f"can't be reached at {hub}" in done.stderr) == (5, True), done.stderr


@pytest.mark.parametrize("arguments", [["list"], ["inspect", "~/model"], ["serve", "--port", "0"]])
def test_without_any_folder_the_error_names_the_setting(tmp_path: Path, arguments: list[str]) -> None:
    done = sandboxed(*arguments, home=None)
    assert done.returncode == 2
    assert "HOME is not set" in done.stderr and "Set RERANKD_HOME" in done.stderr


@pytest.mark.parametrize(
    "env",
    [
        {"PATH": ""},
        {"TZ": "Nowhere/Land", "LANG": "xx_YY.nope", "LC_ALL": ""},
        {"LC_ALL": "C"},
        {"LD_PRELOAD": "/nonexistent.so"},
        {"PYTHONPATH": "/nonexistent:."},
        {"TMPDIR": "/nonexistent"},
        {"COLUMNS": "x", "TERM": "nonsense"},
    ],
    ids=lambda env: next(iter(env)),
)
def test_an_unusual_environment_changes_no_score(tmp_path: Path, env: dict[str, str], plain: str) -> None:
    done = rerank_in(tmp_path, **env)
    assert (done.returncode, done.stdout) == (0, plain), done.stderr


def rerank_in(folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    documents = folder / "documents"
    documents.write_text("a bear of China\n大熊猫\n", encoding="utf-8")
    command = ("rerank", "panda", str(documents), "--model", XLMR)
    return run(*command, home=folder, env=environment(folder, RERANKD_PRECISION="f32", **env))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The output in the environment of the tests."""
    printed = rerank_in(tmp_path_factory.mktemp("plain")).stdout
    assert printed.count("\n") == 2
    return printed


@pytest.mark.parametrize("engine", ["llama", "openvino"])
def test_code_in_the_current_folder_is_not_run(tmp_path: Path, engine: str) -> None:
    folder = tmp_path / "untrusted"
    folder.mkdir()
    for name in ("random", "numpy", "json", "tokenizers", "openvino", "xllamacpp", "pip", "rerankd"):
        (folder / f"{name}.py").write_text("import sys; sys.exit('foreign code has run')\n")
    (folder / "documents").write_text("a bear\nbread\n")
    command = ("rerank", "panda", "documents", "--model", XLMR)
    done = run(*command, home=tmp_path, cwd=folder, env=environment(tmp_path, RERANKD_ENGINE=engine))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 2
    assert "foreign" not in "".join(path.read_text() for path in (tmp_path / "logs").iterdir())


def test_a_package_that_can_not_be_imported_ends_the_start(tmp_path: Path) -> None:
    """The web server is imported by a thread, for which the start waits."""
    (tmp_path / "fastapi").mkdir()
    (tmp_path / "fastapi" / "__init__.py").write_text("raise ImportError('it is broken')\n")
    env = environment(tmp_path, PYTHONPATH=str(tmp_path))
    done = run("serve", XLMR, "--port", "0", home=tmp_path, env=env)
    assert done.returncode != 0 and "it is broken" in done.stderr


def test_every_child_python_ignores_modules_in_the_current_folder() -> None:
    """`python -m` and `python -c` search the current folder first, unless -P or -I is given."""
    found = 0
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.List | ast.Tuple):
                continue
            words = [ast.unparse(word).strip("'\"") for word in node.elts]
            for word, after in itertools.pairwise(words):
                if word == "sys.executable":
                    found += 1
                    assert after in ("-P", "-I"), f"{path.name}, line {node.lineno}"
    assert found >= 8


@pytest.mark.parametrize(
    "line", ['llama_path = "./llama-server"', 'engine_args = ["--log-file", "x"]', 'home = "./data"']
)
def test_an_unnamed_settings_file_in_the_current_folder_can_not_set_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    name = line.split()[0]
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("RERANKD_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rerankd.toml").write_text(line + "\n")
    with pytest.raises(
        ConfigError, match=rf"sets {name}, which decides what program runs.*--config rerankd.toml"
    ):
        config.from_machine()
    # A file that the user names is trusted.
    assert config.from_machine(path=Path("rerankd.toml"))
    monkeypatch.setenv("RERANKD_CONFIG", "rerankd.toml")
    assert config.from_machine()
    monkeypatch.delenv("RERANKD_CONFIG")
    own = tmp_path / "config" / "rerankd" / "rerankd.toml"
    own.parent.mkdir(parents=True)
    (tmp_path / "rerankd.toml").rename(own)
    assert config.from_machine()
    monkeypatch.chdir(own.parent)
    assert config.from_machine()


def test_other_settings_of_the_current_folder_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rerankd.toml").write_text("port = 7\n")
    assert config.from_machine().port == 7
