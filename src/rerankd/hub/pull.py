"""Pull a model: from a reference to a downloaded and checked model in the store.

The steps: parse the reference, look up its sources, list the repository, choose its files, read the header
over the network and resolve how it is scored, download and verify the files, read the header on disk and run
the caller's check, move the files into the store. If a source can't be reached or lacks the model, the next
source in the catalog is tried, with a message. Two pulls of one model run one after the other; the second
finds the model complete.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rerankd.domain import Refusal
from rerankd.download import Downloader, verify
from rerankd.errors import (
    FetchError,
    HubUnreachable,
    ModelFileError,
    RerankdError,
    UnknownModel,
    Unscorable,
    disk_errors,
)
from rerankd.formats import checkpoint_files, model_files
from rerankd.formats.metadata import ModelMetadata
from rerankd.hub import remote
from rerankd.hub.choose_files import Choice, RemoteFile
from rerankd.hub.hubs import Hub, Listing
from rerankd.hub.model_ref import HUBS, ModelRef, parse
from rerankd.hub.store import Record, Store, folder_of, name_of, nearest, within
from rerankd.progress import Progress, size_words
from rerankd.recipes import catalog
from rerankd.recipes.resolution import Resolution
from rerankd.recipes.scoring_method import KNOWN_GOOD


@dataclass(frozen=True, slots=True)
class Puller:
    """The dependencies of a pull.

    `resolve` returns how a model with this header is scored. `check` runs on the downloaded file before it
    enters the store; the pull raises what it raises. `say` receives messages for the user. `memory_bytes` is
    the maximum size of a model; None: unknown.
    """

    store: Store
    hubs: Mapping[str, Hub]
    downloader: Downloader
    resolve: Callable[[ModelMetadata], Resolution]
    check: Callable[[Path], None]
    say: Callable[[str], None]
    progress: Progress
    memory_bytes: int | None = None

    def pull(self, text: str) -> Record:
        """Download the model that `text` names. Raises UnknownModel, ModelFileError (Unscorable), FetchError
        or DataFolderError; the next pull resumes what was downloaded."""
        ref = parse(text)
        sources, default = sources_of(ref)
        folder = folder_of(ref)
        with self.store.locked(folder, lambda: self.say(f"waiting for another pull of {name_of(folder)} …")):
            return self._pull_first(sources, default, folder)

    def _pull_first(self, sources: Sequence[ModelRef], default: str, folder: str) -> Record:
        errors: list[RerankdError] = []
        left = list(sources)
        while left:
            source = left.pop(0)
            try:
                return self._pull_from(source, default, folder)
            except (FetchError, UnknownModel) as error:
                errors.append(error)
                if isinstance(error, HubUnreachable):
                    left = [other for other in left if other.kind != source.kind]
                if left:
                    self.say(f"{error.message}\ntrying {left[0]} instead")
        known = next((record for record in self.store.records() if record.folder == folder), None)
        if known is not None and all(isinstance(error, FetchError) for error in errors):
            self.say(f"{errors[0].message}\n{known.name} is already on this machine and was not changed.")
            return known
        raise errors[-1]  # the earlier ones were printed

    def _pull_from(self, source: ModelRef, default: str, folder: str) -> Record:
        hub = self.hubs[source.kind]
        listing, choice = remote.find(
            self.downloader,
            self.hubs,
            source,
            self.progress,
            default=default,
            memory_bytes=self.memory_bytes,
        )
        where = f"{source.kind}:{source.name}"
        record = Record(
            name=name_of(folder),
            folder=folder,
            files=tuple(file.place for file in choice.files),
            size_bytes=choice.size_bytes,
            pulled_at=time.time(),
            source=where,
            revision=listing.revision,
            sha256=tuple(file.sha256 for file in choice.files),
        )
        known = next((one for one in self.store.records() if one.folder == folder), None)
        if known is not None and _is_same(known, record):
            server = hub.origin(source.name).server
            self.say(f"{known.name} is already on this machine, in the version that {server} has.")
            return known
        weights = (".gguf", checkpoint_files.SUFFIX)
        names = ", ".join(file.place for file in choice.files if file.name.lower().endswith(weights))
        self.say(f"{where}: {names} ({size_words(choice.size_bytes)}), {choice.why}")
        self._check_memory(choice)
        self._resolve_remote(hub, source.name, listing, choice)
        staged = self.store.staging(folder)
        next_step = "Free disk space, or set RERANKD_HOME to another folder."
        with disk_errors(f"{staged} can't be written", next_step):
            staged.mkdir(parents=True, exist_ok=True)
            try:
                for file in choice.files:
                    self._fetch(hub, source.name, listing, file, staged)
                self._install(staged, record)
            except KeyboardInterrupt:
                self._say_kept(staged, record)
                raise
        return record

    def _check_memory(self, choice: Choice) -> None:
        if self.memory_bytes is not None and choice.size_bytes > self.memory_bytes:
            raise ModelFileError(
                f"{max(choice.files, key=lambda file: file.size_bytes).name} has "
                f"{size_words(choice.size_bytes)}, more than the "
                f"{size_words(self.memory_bytes)} of memory this machine has. Pull a smaller quantisation or "
                "a smaller model."
            )

    def _resolve_remote(self, hub: Hub, repo: str, listing: Listing, choice: Choice) -> None:
        """Print how the model will be scored. Raises Unscorable or ModelFileError before the download."""
        resolved = self.resolve(remote.read_metadata(self.downloader, hub, repo, listing, choice))
        resolved.require(hub.origin(repo).ref)
        self.say(f"scored as {resolved.explanation}")

    def _say_kept(self, staged: Path, record: Record) -> None:
        kept = size_words(sum(path.stat().st_size for path in staged.rglob("*") if path.is_file()))
        whole = size_words(record.size_bytes)
        self.say(f"Interrupted. {kept} of {whole} are kept. To resume: rerankd pull {record.name}")

    def _fetch(self, hub: Hub, repo: str, listing: Listing, file: RemoteFile, staged: Path) -> None:
        if not file.is_inside:
            raise FetchError(
                f"{hub.origin(repo).ref} lists a file outside of its folder: {file.path!r:.200}. It was not "
                "downloaded. Use another repository, and report this one."
            )
        target = staged / file.place
        target.parent.mkdir(exist_ok=True)
        source = hub.source(repo, listing.revision, file)
        if target.exists() and file.sha256:
            # An earlier pull was interrupted after this download; the file may be of another revision.
            with contextlib.suppress(FetchError):
                verify(target, source, self.progress)
                return
        cached = hub.cached(repo, listing.revision, file.path)
        if cached is not None and cached.stat().st_size == file.size_bytes:
            self.say(f"copying {file.place} from the {source.origin.server} cache on this machine")
            shutil.copyfile(cached, target)
            with contextlib.suppress(FetchError):
                verify(target, source, self.progress)
                return
        part = staged / f"{file.place}.{file.sha256[:16] or listing.revision}.part"
        self.downloader.fetch(source, part, self.progress)
        os.replace(part, target)

    def _install(self, staged: Path, record: Record) -> None:
        model = within(staged, record)
        try:
            self.resolve(model_files.read(model)).require()
            self.check(model)
        except Unscorable:
            shutil.rmtree(staged)
            raise
        for name in checkpoint_files.paths_in(staged):
            if name not in record.files:
                (staged / name).unlink()
        self.store.add(record, staged)


def _is_same(known: Record, found: Record) -> bool:
    """Whether the repository still has the pulled version. Hubs report no checksum for small files; for these
    the revision is compared."""
    same = (known.files, known.sha256) == (found.files, found.sha256)
    return same and (all(found.sha256) or known.revision == found.revision)


def sources_of(ref: ModelRef) -> tuple[list[ModelRef], str]:
    """Return the sources of a reference in order of preference, and the catalog's default quantisation.
    Raises UnknownModel, and Unscorable for a model that the catalog refuses."""
    if ref.kind in ("hf", "ms"):
        return [ref], ""
    if ref.kind != "name":
        raise UnknownModel(
            f"{str(ref)!r} can't be pulled. Name a model from `rerankd list --catalog`, or a repository as "
            "in hf:org/repo."
        )
    entry = catalog.known().find(ref.name)
    if entry is None:
        also = (
            f" For the Hugging Face repository of this name: rerankd pull hf:{ref}" if "/" in ref.name else ""
        )
        raise UnknownModel(f"The catalog has no model {ref.name!r}.{nearest(ref.name)}{also}")
    if entry.refused:
        raise Refusal(entry.refused, KNOWN_GOOD).error(f"{entry.name} can't be scored correctly")
    sources = [source for source in map(parse, entry.refs) if source.kind in HUBS]
    if not sources:
        raise UnknownModel(
            f"The catalog names no repository with a GGUF file of {entry.name}. If you know one: rerankd "
            "pull hf:ORG/REPO"
        )
    if ref.quant:
        sources = [ModelRef(source.kind, source.name, ref.quant) for source in sources]
    return sources, entry.quant
