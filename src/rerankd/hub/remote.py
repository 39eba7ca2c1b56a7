"""Read a model in a repository before its download: its files, and the metadata from the start of each
file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from rerankd.download import Beginning, Downloader
from rerankd.formats import checkpoint_files, gguf_metadata
from rerankd.formats import safetensors_metadata as folders
from rerankd.formats.metadata import ModelMetadata
from rerankd.formats.metadata_keys import refuse
from rerankd.hub.choose_files import Choice, RemoteFile, choose
from rerankd.hub.hubs import Hub, Listing
from rerankd.hub.model_ref import ModelRef
from rerankd.progress import Progress, size_words, step

# Limits of the files that describe a model and are read completely. Published models have at most 15 such
# files, of some kilobytes.
_MOST_FILES = 64
_MOST_BYTES = 16 * 2**20


def find(
    downloader: Downloader,
    hubs: Mapping[str, Hub],
    source: ModelRef,
    progress: Progress,
    *,
    default: str = "",
    memory_bytes: int | None = None,
) -> tuple[Listing, Choice]:
    """List a repository and choose the files of one model (see `choose`). Raises FetchError and
    UnknownModel."""
    hub = hubs[source.kind]
    with step(progress, f"listing {source.name} on {hub.origin(source.name).server}"):
        listing = downloader.retrying(lambda: hub.listing(source.name))
    choice = choose(
        listing.files,
        f"{source.kind}:{source.name}",
        quant=source.quant,
        file=source.file,
        default=default,
        memory_bytes=memory_bytes,
    )
    return listing, choice


def read_metadata(
    downloader: Downloader, hub: Hub, repo: str, listing: Listing, choice: Choice
) -> ModelMetadata:
    """The metadata of the model that consists of the chosen files. Downloads the small files that describe
    it, and the headers of its weights. Raises ModelFileError and FetchError."""
    with contextlib.ExitStack() as streams:

        def opened(file: RemoteFile) -> Beginning:
            source = hub.source(repo, listing.revision, file)
            return streams.enter_context(downloader.beginning(source))

        def parts(endings: tuple[str, ...], folder: str) -> Iterator[tuple[Beginning, int, Path]]:
            for file in choice.files:
                if file.name.lower().endswith(endings):
                    yield opened(file), file.size_bytes, Path(folder, file.path)

        describing = [file for file in choice.files if checkpoint_files.describes(file.place)]
        largest = max((file.size_bytes for file in describing), default=0)
        if len(describing) > _MOST_FILES or largest > _MOST_BYTES:
            refuse(
                Path(repo),
                f"{len(describing)} files describe the model, the largest with {size_words(largest)}; the "
                f"limits are {_MOST_FILES} files and {size_words(_MOST_BYTES)} each",
            )
        described = {file.place: opened(file).read() for file in describing}
        if described:
            metadata = folders.read_streams(Path(repo), described, parts((checkpoint_files.SUFFIX,), ""))
            if not folders.needs_vocabulary(metadata):
                return metadata
            (tokenizer,) = [file for file in choice.files if file.place == checkpoint_files.TOKENIZER]
            content = opened(tokenizer).read().decode("utf-8", "replace")
            try:
                return folders.with_tokens(metadata, content)
            except ValueError as error:
                refuse(metadata.path / checkpoint_files.TOKENIZER, f"its tokenizer can't be read: {error}")
        # The repository's name helps to identify the model (model_identity.py).
        return gguf_metadata.read_streams(parts((".gguf", checkpoint_files.SUFFIX), repo.replace("/", "--")))
