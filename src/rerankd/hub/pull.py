"""`rerankd pull`: from what a user typed to a model on this disk that is known to score right.

Reference -> its sources -> the repository's listing -> the choice among its files -> the
header, over the network, and how it is scored -> the bytes, resumed and verified -> the header again, from
the disk, and the caller's own check -> its place in the store. Where a place is out of reach or does not have
it, the next one that the catalog knows is tried, and said. Two pulls of one model take turns; the second
finds it done.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rerankd.domain import Refusal
from rerankd.download import Beginning, Downloader, verify
from rerankd.errors import (
    FetchError,
    HubUnreachable,
    ModelFileError,
    RerankdError,
    UnknownModel,
    Unscorable,
    disk_errors,
)
from rerankd.formats import checkpoint_files, gguf_metadata, model_files
from rerankd.formats import safetensors_metadata as folders
from rerankd.formats.metadata import ModelMetadata
from rerankd.hub.choose_files import Choice, RemoteFile, choose
from rerankd.hub.hubs import Hub, Listing
from rerankd.hub.model_ref import HUBS, ModelRef, parse
from rerankd.hub.store import Record, Store, folder_of, name_of, nearest, within
from rerankd.progress import Progress, size_words, step
from rerankd.recipes import catalog
from rerankd.recipes.resolution import Resolution
from rerankd.recipes.scoring_method import KNOWN_GOOD


@dataclass(frozen=True, slots=True)
class Puller:
    """What pulls need besides a reference.

    `resolve` says how a model with this header is scored. `check` is the last word on the file before it has
    its place; what it raises, the pull raises. `say` takes sentences for the user. `memory_bytes` is what a
    model may weigh, None where that is not known.
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
        """Fetch the model that `text` names. Raises UnknownModel, ModelFileError (Unscorable), FetchError or
        DataFolderError; what was fetched until then is kept for the next pull, out of sight."""
        ref = parse(text)
        places, default = _places(ref)
        folder = folder_of(ref)
        with self.store.locked(folder, lambda: self.say(f"waiting for another pull of {name_of(folder)} …")):
            return self._pull_first(places, default, folder)

    def _pull_first(self, places: Sequence[ModelRef], default: str, folder: str) -> Record:
        errors: list[RerankdError] = []
        left = list(places)
        while left:
            place = left.pop(0)
            try:
                return self._pull_from(place, default, folder)
            except (FetchError, UnknownModel) as error:
                errors.append(error)
                if isinstance(error, HubUnreachable):
                    left = [other for other in left if other.kind != place.kind]
                if left:
                    self.say(f"{error.message}\ntrying {left[0]} instead")
        known = next((record for record in self.store.records() if record.folder == folder), None)
        if known is not None and all(isinstance(error, FetchError) for error in errors):
            self.say(f"{errors[0].message}\n{known.name} is on this machine already, and stays as it is.")
            return known
        raise errors[-1]  # the ones before it were said

    def _pull_from(self, place: ModelRef, default: str, folder: str) -> Record:
        hub = self.hubs[place.kind]
        with step(self.progress, f"asking {hub.origin(place.name).server} for {place.name}"):
            listing = self.downloader.asked(lambda: hub.listing(place.name))
        where = f"{place.kind}:{place.name}"
        choice = choose(
            listing.files,
            where,
            quant=place.quant,
            file=place.file,
            default=default,
            memory_bytes=self.memory_bytes,
        )
        record = Record(
            name=name_of(folder),
            folder=folder,
            files=tuple(file.name for file in choice.files),
            size_bytes=choice.size_bytes,
            pulled_at=time.time(),
            source=where,
            revision=listing.revision,
            sha256=tuple(file.sha256 for file in choice.files),
        )
        known = next((one for one in self.store.records() if one.folder == folder), None)
        if known is not None and _is_same(known, record):
            self.say(f"{known.name} is on this machine already, as it is on {hub.origin(place.name).server}.")
            return known
        names = ", ".join(file.name for file in choice.files if not file.name.endswith(".json"))
        self.say(f"{where}: {names} ({size_words(choice.size_bytes)}), {choice.why}")
        self._check_memory(choice)
        self._resolve_remote(hub, place.name, listing, choice)
        staged = self.store.staging(folder)
        free_some = "Free some space, or name another folder with RERANKD_HOME."
        with disk_errors(f"{staged} can't be written", free_some):
            staged.mkdir(parents=True, exist_ok=True)
            for file in choice.files:
                self._fetch(hub, place.name, listing, file, staged)
            self._settle(staged, record)
        return record

    def _check_memory(self, choice: Choice) -> None:
        if self.memory_bytes is not None and choice.size_bytes > self.memory_bytes:
            raise ModelFileError(
                f"{max(choice.files, key=lambda file: file.size_bytes).name} has "
                f"{size_words(choice.size_bytes)}, more than the "
                f"{size_words(self.memory_bytes)} of memory this machine has. Take a smaller quantisation or "
                "a smaller model."
            )

    def _resolve_remote(self, hub: Hub, repo: str, listing: Listing, choice: Choice) -> None:
        """Say how the model will be scored. Raises Unscorable or ModelFileError before it is fetched."""
        with contextlib.ExitStack() as streams:

            def opened(file: RemoteFile) -> Beginning:
                source = hub.source(repo, listing.revision, file)
                return streams.enter_context(self.downloader.beginning(source))

            def parts(ending: str) -> Iterator[tuple[Beginning, int, Path]]:
                for file in choice.files:
                    if file.name.lower().endswith(ending):
                        # The repository's name is a part of what the file says that it is
                        # (model_identity.py).
                        yield opened(file), file.size_bytes, Path(repo.replace("/", "--"), file.path)

            described = {
                file.name: opened(file).read()
                for file in choice.files
                if file.name in checkpoint_files.DESCRIBING
            }
            if described:
                metadata = folders.read_streams(Path(repo), described, parts(checkpoint_files.SUFFIX))
            else:
                metadata = gguf_metadata.read_streams(parts(".gguf"))
            resolved = self.resolve(metadata)
        resolved.require(hub.origin(repo).ref)
        self.say(f"scored as {resolved.explanation}")

    def _fetch(self, hub: Hub, repo: str, listing: Listing, file: RemoteFile, staged: Path) -> None:
        target = staged / file.name
        source = hub.source(repo, listing.revision, file)
        if target.exists() and file.sha256:
            # From an earlier pull that ended after the download: it may be of another revision.
            with contextlib.suppress(FetchError):
                verify(target, source, self.progress)
                return
        cached = hub.cached(repo, listing.revision, file.path)
        if cached is not None and cached.stat().st_size == file.size_bytes:
            self.say(f"{file.name} is in the cache of {source.origin.server} already")
            shutil.copyfile(cached, target)
            with contextlib.suppress(FetchError):
                verify(target, source, self.progress)
                return
        part = staged / f"{file.name}.{file.sha256[:16] or listing.revision}.part"
        self.downloader.fetch(source, part, self.progress)
        os.replace(part, target)

    def _settle(self, staged: Path, record: Record) -> None:
        model = within(staged, record)
        try:
            self.resolve(model_files.read(model)).require()
            self.check(model)
        except Unscorable:
            shutil.rmtree(staged)
            raise
        for path in staged.iterdir():
            if path.name not in record.files:
                path.unlink()
        self.store.add(record, staged)


def _is_same(known: Record, found: Record) -> bool:
    """Whether a repository holds what was pulled. Small files may have no checksum: then the revision
    tells."""
    same = (known.files, known.sha256) == (found.files, found.sha256)
    return same and (all(found.sha256) or known.revision == found.revision)


def _places(ref: ModelRef) -> tuple[list[ModelRef], str]:
    """The sources of a reference, the first choice first, and the catalog's default quantisation."""
    if ref.kind in ("hf", "ms"):
        return [ref], ""
    if ref.kind != "name":
        raise UnknownModel(
            f"{str(ref)!r} is nothing that is pulled. Name a model of `rerankd list --catalog`, or a "
            "repository as in hf:org/repo."
        )
    entry = catalog.known().find(ref.name)
    if entry is None:
        also = f" A repository of Hugging Face is named hf:{ref}" if "/" in ref.name else ""
        raise UnknownModel(f"rerankd knows no model {ref.name!r}.{nearest(ref.name)}{also}")
    if entry.refused:
        raise Refusal(entry.refused, KNOWN_GOOD).error(f"{entry.name} can't be scored correctly")
    places = [place for place in map(parse, entry.refs) if place.kind in HUBS]
    if not places:
        raise UnknownModel(
            f"rerankd knows {entry.name}, but no place that has it as GGUF. If you know one, name it: "
            "rerankd pull hf:ORG/REPO"
        )
    if ref.quant:
        places = [ModelRef(place.kind, place.name, ref.quant) for place in places]
    return places, entry.quant
