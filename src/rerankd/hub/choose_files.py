"""(pure) Choose which files of a repository to pull: listing and user's choice -> `Choice` or UnknownModel.

A model is one GGUF file, or all parts of a split one (`…-00001-of-00003.gguf`). The file name states the
quantisation. The order of preference: the file or quantisation that the user names; the catalog's default;
the best one that fits the machine's memory. Higher quantisations are preferred, but unquantised files come
last: they are twice as large, and the scores are the same. Projectors of vision models and importance
matrices are ignored; a head beside the file (formats/head_file.py) is a part of the model. A repository
without GGUF files is pulled as safetensors, with its configuration files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from rerankd.errors import UnknownModel
from rerankd.formats import checkpoint_files, head_file
from rerankd.progress import size_words

# fmt: off
PREFERRED = (
    "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "IQ4_NL", "IQ4_XS", "Q4_1",
    "Q4_0", "MXFP4", "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "Q2_K", "BF16", "F16", "F32",
)
# fmt: on
# Memory that an engine needs in total, relative to the weights: at least its buffers for a small max_length.
_OVERHEAD = 1.1
_QUANT = re.compile(
    r"(?:^|[-._])(?P<quant>I?Q\d(?:_[A-Z0-9]+)*|BF16|FP?16|FP?32|MXFP4|NVFP4|TQ\d_\d)(?=$|[-._])",
    re.IGNORECASE,
)
_PART = re.compile(rf"^(?P<stem>.*){checkpoint_files.PART}$")
_NO_MODEL = re.compile(r"(?:^|[-._/])(?:mmproj|imatrix)(?:$|[-._])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository: path, size, and checksum ("" if the hub reports none)."""

    path: str
    size_bytes: int
    sha256: str = ""

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def place(self) -> str:
        """Its path in the folder of the pulled model: the name of a GGUF file or of a head beside it, and a
        checkpoint's whole path."""
        return self.name if self.name.lower().endswith(".gguf") or head_file.is_head(self.name) else self.path

    @property
    def is_inside(self) -> bool:
        """Whether `place` is in the folder of the pulled model, or in a direct subfolder. A listing is
        untrusted input: a name with `..` would overwrite other files."""
        parts = self.place.split("/")
        return len(parts) <= 2 and not any(
            part in ("", ".", "..") or set(part) & {"\\", "\0"} for part in parts
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """The files to download, in the order of their parts, and the reason in a few words."""

    files: tuple[RemoteFile, ...]
    why: str

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class _Model:
    stem: str
    quant: str
    files: tuple[RemoteFile, ...]
    parts: int

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def is_whole(self) -> bool:
        return len(self.files) == self.parts


def quant_of(stem: str) -> str:
    """Return the quantisation in a file name (without .gguf), spelled as in PREFERRED; "" if it has none."""
    found = [match["quant"].upper() for match in _QUANT.finditer(stem.rpartition("/")[2])]
    return found[-1].replace("FP16", "F16").replace("FP32", "F32") if found else ""


def quants(files: Iterable[RemoteFile]) -> tuple[str, ...]:
    """Return the quantisations of a repository's complete GGUF files, the preferred ones first."""
    known = {model.quant for model in _models(files) if model.is_whole}
    return tuple(quant for quant in PREFERRED if quant in known)


def choose(
    files: Iterable[RemoteFile],
    where: str,
    *,
    quant: str = "",
    file: str = "",
    default: str = "",
    memory_bytes: int | None = None,
) -> Choice:
    """Choose the model's files in a repository's listing `files`. `where` is its reference, as in
    hf:org/repo.

    `quant` and `file` are the user's choice, `default` is the catalog's quantisation. Raises UnknownModel,
    which lists the available files, if no file or more than one matches.
    """
    files = tuple(files)
    models = _models(files)
    if not models:
        return _checkpoint(files, where, bool(file or quant))
    chosen = _gguf(models, where, quant, file, default, memory_bytes)
    return replace(chosen, files=(*chosen.files, *_heads(files, chosen.files[0])))


def _heads(files: Iterable[RemoteFile], model: RemoteFile) -> list[RemoteFile]:
    """The head beside a GGUF file in the repository, which is read with it (see head_file.py)."""
    by_path = {file.path: file for file in files}
    places = (path.as_posix() for path in head_file.candidates(PurePosixPath(model.path)))
    return [by_path[place] for place in places if place in by_path][:1]


def _gguf(
    models: Sequence[_Model], where: str, quant: str, file: str, default: str, memory_bytes: int | None
) -> Choice:
    if file:
        chosen = [model for model in models if file in (part.path for part in model.files)]
        return _one(chosen, models, where, f"{where} has no file {file}", "as requested")
    if quant:
        chosen = [model for model in models if _is_quant(model, quant)]
        return _one(chosen, models, where, f"{where} has no {quant.upper()}", "as requested")
    if len(models) == 1:
        return _one(models, models, where, "", "the only one")
    return _best(models, where, default, memory_bytes)


def _checkpoint(files: Sequence[RemoteFile], where: str, is_specific: bool) -> Choice:
    by_path = {file.path: file for file in files}
    names = checkpoint_files.files(by_path)
    if not names:
        raise UnknownModel(
            f"{where} has no GGUF file, and no complete safetensors model (with {checkpoint_files.CONFIG} "
            f"and {checkpoint_files.TOKENIZER}): {checkpoint_files.missing(by_path)}. Name a repository that "
            "has a GGUF file or a complete safetensors model."
        )
    if is_specific:
        raise UnknownModel(
            f"{where} has no GGUF files, only safetensors, which are pulled as a whole. Pull it without a "
            f"quantisation or file name: {where}"
        )
    return Choice(tuple(by_path[name] for name in names), "safetensors, unquantised")


def _best(models: Sequence[_Model], where: str, default: str, memory_bytes: int | None) -> Choice:
    ranks = {name: rank for rank, name in enumerate(PREFERRED)} | {default.upper(): -1}
    known = sorted((model for model in models if model.quant in ranks), key=lambda model: ranks[model.quant])
    if not known:
        return _one(models, models, where, "", "")
    fitting = [m for m in known if memory_bytes is None or m.size_bytes * _OVERHEAD <= memory_bytes]
    if not fitting:
        least = min(known, key=lambda model: model.size_bytes)
        raise UnknownModel(
            f"No file in {where} fits this machine's {size_words(memory_bytes or 0)} of memory; the smallest "
            f"is {least.quant} with {size_words(least.size_bytes)}. Pull a smaller model."
        )
    best = fitting[0].quant
    why = "the best one that fits this machine's memory" if known[0].quant != best else "the default"
    return _one([model for model in models if model.quant == best], models, where, "", why)


def _one(chosen: Sequence[_Model], models: Sequence[_Model], where: str, missing: str, why: str) -> Choice:
    if len(chosen) != 1:
        problem = missing if not chosen else f"More than one file of {where} matches"
        raise UnknownModel(
            f"{problem}. Available files:\n{_listed(models)}\nName one of them, as in "
            f"{_example(models, where)}"
        )
    (model,) = chosen
    if not model.is_whole:
        raise UnknownModel(
            f"{model.stem} in {where} is split into {model.parts} files, but the repository has only "
            f"{len(model.files)} of them: the upload is incomplete. Name another one of these:\n"
            + _listed(models)
        )
    return Choice(model.files, why)


def _is_quant(model: _Model, wanted: str) -> bool:
    wanted = wanted.lower()
    name = model.stem.rpartition("/")[2].lower()
    return model.quant.lower() == wanted or re.search(rf"(?:^|[-._]){re.escape(wanted)}$", name) is not None


def _models(files: Iterable[RemoteFile]) -> list[_Model]:
    groups: dict[tuple[str, int], list[RemoteFile]] = {}
    for file in sorted(files, key=lambda file: file.path):
        if not file.path.lower().endswith(".gguf") or _NO_MODEL.search(file.path):
            continue
        stem = file.path[: -len(".gguf")]
        part = _PART.match(stem)
        key = (part["stem"], int(part["count"])) if part else (stem, 1)
        groups.setdefault(key, []).append(file)
    return [_Model(stem, quant_of(stem), tuple(parts), count) for (stem, count), parts in groups.items()]


def _listed(models: Sequence[_Model]) -> str:
    def line(model: _Model) -> str:
        parts = f", {len(model.files)} of {model.parts} files" if model.parts > 1 else ""
        return f"  {model.quant or '?':8} {size_words(model.size_bytes):>9}  {model.files[0].path}{parts}"

    more = [f"  … and {len(models) - 30} more"] if len(models) > 30 else []
    return "\n".join([line(model) for model in models[:30]] + more)


def _example(models: Sequence[_Model], where: str) -> str:
    quants = [model.quant for model in models if model.is_whole]
    single = next((quant for quant in quants if quant and quants.count(quant) == 1), "")
    return f"{where}:{single}" if single else f"{where}/{models[0].files[0].path}"
