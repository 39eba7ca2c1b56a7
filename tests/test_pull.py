"""Pulls with the hubs' official clients from fake hubs on loopback, with every kind of fault."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import checkpoints
import ggufs
from fake_hub import COMMIT, FakeHub, fake_hub
from rerankd.download import Downloader, Patience
from rerankd.errors import (
    DataFolderError,
    FetchError,
    HubUnreachable,
    ModelFileError,
    UnknownModel,
    Unscorable,
)
from rerankd.formats import gguf_metadata
from rerankd.formats.metadata import ModelMetadata
from rerankd.hub.hubs import HuggingFace, ModelScope
from rerankd.hub.pull import Puller
from rerankd.hub.store import Store
from rerankd.progress import size_words
from rerankd.recipes import catalog
from rerankd.recipes.resolution import Resolution
from rerankd.recipes.resolve import resolve
from support import GOLDEN, environment, until

XLMR = (GOLDEN / "xlmr-head.gguf").read_bytes()
REPO = "org/tiny-GGUF"
FILE = "tiny-Q8_0.gguf"
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the clients caches and tokens of this test; a failed listing is not retried."""
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms-cache"))
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "ms-home"))
    monkeypatch.setattr("modelscope_hub._legacy_api.REPO_TREE_PAGE_MAX_ATTEMPTS", 1)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf-cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub(repos={REPO: {FILE: XLMR, "README.md": b"# tiny"}}) as running:
        yield running


@dataclasses.dataclass
class Pulls:
    """A store and a function that pulls into it, with short timeouts."""

    store: Store
    said: list[str]
    timeout_s: float = 10
    slept: list[float] = dataclasses.field(default_factory=list)
    progress: list[str] = dataclasses.field(default_factory=list)

    def __call__(self, text: str, hub: FakeHub | str, ms: FakeHub | str = NOWHERE, **more: Any) -> Path:
        urls = [one.url if isinstance(one, FakeHub) else one for one in (hub, ms)]
        patience = Patience(self.timeout_s, pause_s=0, sleep=self.slept.append)
        with Downloader(patience, lambda what, done, total: self.progress.append(what)) as downloader:
            puller = Puller(
                store=self.store,
                hubs={"hf": HuggingFace(urls[0]), "ms": ModelScope(urls[1])},
                downloader=downloader,
                **{
                    "resolve": lambda metadata: resolve(metadata, catalog.known()),
                    "check": lambda path: None,
                    "say": self.said.append,
                    "progress": lambda what, done, total: None,
                    **more,
                },
            )
            return self.store.path(puller.pull(text))

    @property
    def shown(self) -> list[str]:
        """The visible models: every .gguf outside the folder of incomplete pulls."""
        found = self.store.models.rglob("*.gguf")
        return [str(path) for path in found if ".pull" not in path.parts]

    @property
    def parts(self) -> list[Path]:
        return list(self.store.models.rglob("*.part"))


@pytest.fixture
def pulls(tmp_path: Path) -> Pulls:
    return Pulls(Store(tmp_path / "home"), [])


def test_a_pull_from_hugging_face(hub: FakeHub, pulls: Pulls) -> None:
    path = pulls(f"hf:{REPO}", hub)
    assert path.read_bytes() == XLMR
    assert path == pulls.store.models / "hf--org--tiny-GGUF" / FILE
    (record,) = pulls.store.records()
    assert (record.name, record.source, record.revision) == (f"hf:{REPO}", f"hf:{REPO}", COMMIT)
    assert record.sha256 == (hashlib.sha256(XLMR).hexdigest(),)
    assert pulls.store.locate(f"hf:{REPO}", lambda *_: None) == path
    assert pulls.store.default() == f"hf:{REPO}"
    assert "cross-encoder" in "".join(pulls.said)
    assert pulls.parts == []


def test_a_pull_from_model_scope(hub: FakeHub, pulls: Pulls) -> None:
    assert pulls(f"ms:{REPO}:q8_0", NOWHERE, hub).read_bytes() == XLMR
    assert pulls.store.find(f"ms:{REPO}") is not None


def test_a_second_pull_downloads_nothing_and_a_new_revision_replaces_the_old(
    hub: FakeHub, pulls: Pulls
) -> None:
    pulls(f"hf:{REPO}", hub)
    hub.asked.clear()
    pulls(f"hf:{REPO}", hub)
    assert hub.bodies == []
    assert "already" in pulls.said[-1]
    newer = (GOLDEN / "modernbert-head.gguf").read_bytes()
    hub.repos[REPO][FILE] = newer
    assert pulls(f"hf:{REPO}", hub).read_bytes() == newer
    assert len(pulls.store.records()) == len(pulls.shown) == 1


def test_a_pulled_model_is_kept_if_the_hub_is_unreachable(hub: FakeHub, pulls: Pulls) -> None:
    path = pulls(f"hf:{REPO}", hub)
    assert pulls(f"hf:{REPO}", NOWHERE) == path
    assert "was not changed" in pulls.said[-1]


@pytest.mark.parametrize("kind", ["hf", "ms"])
@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        ({"list_status": 401}, FetchError, "requires a token for it (401)"),
        ({"list_status": 403}, FetchError, "Accept its terms at https://"),
        ({"list_status": 404}, FetchError, "has no such file or repository (404)"),
        ({"list_status": 429}, FetchError, "too many requests"),
        ({"list_status": 500}, FetchError, "returned the status 500"),
        ({"file_status": 401}, FetchError, "requires a token for it (401)"),
        ({"file_status": 403}, FetchError, "gated"),
        ({"file_status": 404}, FetchError, "has no such file or repository (404)"),
        ({"file_status": 429}, FetchError, "Try again in 7 s"),
        ({"file_status": 500}, FetchError, "returned the status 500"),
        ({"cut_after": 0}, FetchError, "Try again: the download resumes"),
        ({"garble": True}, FetchError, "and was deleted"),
    ],
)
def test_a_fault_of_the_hub_is_reported_and_leaves_no_model(
    hub: FakeHub, pulls: Pulls, kind: str, fault: dict[str, Any], error: type[Exception], says: str
) -> None:
    for name, value in fault.items():
        setattr(hub, name, value)
    with pytest.raises(error, match=f"{kind}:|ModelScope|Hugging Face") as caught:
        pulls(f"{kind}:{REPO}", hub, hub)
    assert says in str(caught.value)
    assert pulls.shown == []
    assert pulls.store.records() == ()


@pytest.mark.parametrize("kind", ["hf", "ms"])
def test_without_a_network_the_error_names_the_proxy_setting(pulls: Pulls, kind: str) -> None:
    with pytest.raises(HubUnreachable, match="can't be reached at") as caught:
        pulls(f"{kind}:{REPO}", NOWHERE)
    assert "HTTPS_PROXY" in str(caught.value)


@pytest.mark.parametrize("kind", ["hf", "ms"])
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"is_circle": True}, "too many redirects"),
        ({"encoding": "gzip"}, "the compressed response is damaged"),
        ({"is_portal": True}, "returned a web page instead of"),
    ],
)
def test_responses_that_a_proxy_changed_are_reported(
    hub: FakeHub, pulls: Pulls, kind: str, fault: dict[str, Any], says: str
) -> None:
    """Each caused a traceback."""
    for name, value in fault.items():
        setattr(hub, name, value)
    with pytest.raises(FetchError) as caught:
        pulls(f"{kind}:{REPO}", hub, hub)
    assert says in str(caught.value)
    assert pulls.shown == []


@pytest.mark.parametrize("kind", ["hf", "ms"])
def test_a_busy_hub_is_retried_after_the_time_it_requests(hub: FakeHub, pulls: Pulls, kind: str) -> None:
    hub.busy_listings, hub.statuses, hub.busy_s = 2, [429, 503], "9"
    assert pulls(f"{kind}:{REPO}", hub, hub).read_bytes() == XLMR
    assert sum(pulls.slept) == 4 * 9
    assert "waiting 9 s, as the hub requests" in pulls.progress


@pytest.mark.parametrize("kind", ["hf", "ms"])
def test_waits_of_more_than_five_minutes_are_reported_instead(hub: FakeHub, pulls: Pulls, kind: str) -> None:
    hub.busy_listings, hub.busy_s = 9, "301"
    with pytest.raises(FetchError, match="Try again in 301 s"):
        pulls(f"{kind}:{REPO}", hub, hub)
    hub.busy_s = "120"
    with pytest.raises(FetchError, match="Try again in 120 s"):
        pulls(f"{kind}:{REPO}", hub, hub)
    assert sum(pulls.slept) == 2 * 120


def test_a_file_system_without_locks_can_be_used(
    hub: FakeHub, pulls: Pulls, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """NFS without its lock service. No file system of a test machine refuses locks, so the call does."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    assert pulls(f"hf:{REPO}", hub).read_bytes() == XLMR
    assert "has no locks" in caplog.text


def test_a_gated_model_is_pulled_with_a_token(
    hub: FakeHub, pulls: Pulls, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.needs_token = "secret"
    with pytest.raises(FetchError, match="set HF_TOKEN to it"):
        pulls(f"hf:{REPO}", hub)
    with pytest.raises(FetchError, match="set MODELSCOPE_API_TOKEN to it"):
        pulls(f"ms:{REPO}", NOWHERE, hub)
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "secret")
    assert pulls(f"hf:{REPO}", hub).read_bytes() == XLMR
    assert pulls(f"ms:{REPO}", NOWHERE, hub).read_bytes() == XLMR


def test_an_interrupted_download_resumes(hub: FakeHub, pulls: Pulls) -> None:
    hub.cut_after = 300_000
    assert pulls(f"hf:{REPO}", hub).read_bytes() == XLMR
    assert hub.bodies == ["", "bytes=300000-", "bytes=600000-"]


def test_a_second_pull_resumes_the_first(hub: FakeHub, pulls: Pulls) -> None:
    hub.cut_after, hub.cuts, hub.statuses = 300_000, 1, [200] + [503] * 9
    with pytest.raises(FetchError, match="503"):
        pulls(f"hf:{REPO}", hub)
    (part,) = pulls.parts
    assert part.read_bytes() == XLMR[:300_000]
    assert pulls.shown == []
    hub.statuses = []
    hub.asked.clear()
    assert pulls(f"hf:{REPO}", hub).read_bytes() == XLMR
    assert hub.bodies == ["bytes=300000-"]
    assert pulls.parts == []


def test_a_download_from_one_hub_resumes_from_the_other(hub: FakeHub, pulls: Pulls, tmp_path: Path) -> None:
    """A part file is identified by the checksum of its file, not by the hub."""
    hub.cut_after, hub.cuts, hub.statuses = 300_000, 1, [200] + [503] * 9
    with pytest.raises(FetchError):
        pulls(f"hf:{REPO}", hub)
    (part,) = pulls.parts
    other = pulls.store.staging(f"ms--{REPO.replace('/', '--')}")
    other.mkdir()
    part.rename(other / part.name)
    hub.statuses = []
    hub.asked.clear()
    assert pulls(f"ms:{REPO}", NOWHERE, hub).read_bytes() == XLMR
    assert hub.bodies == ["bytes=300000-"]


@pytest.mark.parametrize("fault", [{"no_ranges": True}, {"range_status": 416}])
def test_a_hub_without_range_requests_sends_the_whole_file_again(
    hub: FakeHub, pulls: Pulls, fault: dict[str, Any]
) -> None:
    for name, value in {"cut_after": 300_000, "cuts": 1, **fault}.items():
        setattr(hub, name, value)
    assert pulls(f"hf:{REPO}", hub).read_bytes() == XLMR


def test_wrong_bytes_are_deleted_and_do_not_spoil_the_next_pull(hub: FakeHub, pulls: Pulls) -> None:
    hub.garble = True
    with pytest.raises(FetchError, match="sha256"):
        pulls(f"hf:{REPO}", hub)
    assert pulls.parts == []
    hub.garble = False
    assert pulls(f"hf:{REPO}", hub).read_bytes() == XLMR


def test_a_hub_that_stops_sending_times_out(hub: FakeHub, pulls: Pulls) -> None:
    hub.hang = threading.Event()
    pulls.timeout_s = 0.2
    with pytest.raises(FetchError, match="was interrupted at"):
        pulls(f"hf:{REPO}", hub)
    assert pulls.shown == []


def test_a_disk_that_is_too_small_is_reported_before_the_download(hub: FakeHub, pulls: Pulls) -> None:
    hub.claimed_sizes[FILE] = 10**17
    with pytest.raises(DataFolderError, match="the download needs another"):
        pulls(f"hf:{REPO}", hub)
    assert pulls.shown == []


def test_a_model_that_can_not_be_scored_is_refused_before_the_download(hub: FakeHub, pulls: Pulls) -> None:
    hub.repos[REPO][FILE] = (GOLDEN / "qwen2-labels.gguf").read_bytes()
    with pytest.raises(Unscorable, match="can't be scored correctly"):
        pulls(f"hf:{REPO}", hub)
    assert hub.bodies == []
    hub.repos[REPO][FILE] = b"<!doctype html><title>Sign in</title>"
    with pytest.raises(ModelFileError, match="web page"):
        pulls(f"hf:{REPO}", hub)
    with pytest.raises(ModelFileError, match="memory"):
        pulls(f"hf:{REPO}", hub, memory_bytes=10)


def test_a_model_that_fails_the_check_is_not_stored(hub: FakeHub, pulls: Pulls) -> None:
    def fails(path: Path) -> None:
        assert gguf_metadata.read(path).size_bytes == len(XLMR)
        raise Unscorable("its scores are all alike")

    with pytest.raises(Unscorable, match="alike"):
        pulls(f"hf:{REPO}", hub, check=fails)
    assert pulls.shown == []
    assert not pulls.store.staging("hf--org--tiny-GGUF").exists()


def test_an_engine_that_does_not_start_causes_no_second_download(hub: FakeHub, pulls: Pulls) -> None:
    def fails(path: Path) -> None:
        raise FetchError("no engine")

    with pytest.raises(FetchError):
        pulls(f"hf:{REPO}", hub, check=fails)
    assert pulls.shown == []
    hub.asked.clear()
    pulls(f"hf:{REPO}", hub)
    assert hub.bodies == []


def test_the_other_hub_is_tried_with_a_message(hub: FakeHub, pulls: Pulls) -> None:
    hub.repos["gpustack/bge-reranker-v2-m3-GGUF"] = {"bge-reranker-v2-m3-Q8_0.gguf": XLMR, "x-F16.gguf": b""}
    path = pulls("BAAI/bge-reranker-v2-m3", NOWHERE, hub)
    assert path.parent.name == "bge-reranker-v2-m3"
    assert "can't be reached" in "".join(pulls.said)
    assert "trying ms:gpustack/bge-reranker-v2-m3-GGUF instead" in "".join(pulls.said)
    assert pulls.store.records()[0].source == "ms:gpustack/bge-reranker-v2-m3-GGUF"


def test_a_quantisation_is_searched_in_all_sources(hub: FakeHub, pulls: Pulls) -> None:
    hub.repos["ggml-org/Qwen3-Reranker-0.6B-Q8_0-GGUF"] = {"qwen3-reranker-0.6b-q8_0.gguf": XLMR}
    hub.repos["Voodisss/Qwen3-Reranker-0.6B-GGUF-llama_cpp"] = {"Qwen3-Reranker-0.6B-Q4_K_M.gguf": XLMR}
    assert pulls("qwen3-reranker-0.6b:q4_k_m", hub).name == "Qwen3-Reranker-0.6B-Q4_K_M.gguf"
    assert [record.name for record in pulls.store.records()] == ["qwen3-reranker-0.6b:q4_k_m"]
    assert pulls.store.find("Qwen/Qwen3-Reranker-0.6B") is not None


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("bge-reranker-v2-m4", UnknownModel, "Did you mean bge-reranker-v2-m3?"),
        ("some/where", UnknownModel, "rerankd list --catalog"),
        ("LightOn-rerank-PW", Unscorable, "chat_template.jinja"),
        ("kure-reranker-base", UnknownModel, "names no repository"),
        ("./model.gguf", UnknownModel, "can't be pulled"),
        (f"hf:{REPO}:q4_0", UnknownModel, FILE),
    ],
)
def test_a_reference_that_can_not_be_pulled_is_rejected_with_a_hint(
    hub: FakeHub, pulls: Pulls, text: str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error) as caught:
        pulls(text, hub)
    assert says in str(caught.value)


def test_a_file_in_the_official_clients_cache_is_reused(hub: FakeHub, pulls: Pulls, tmp_path: Path) -> None:
    snapshot = tmp_path / "hf-cache" / "models--org--tiny-GGUF" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / FILE).write_bytes(XLMR)
    assert pulls(f"hf:{REPO}", hub).read_bytes() == XLMR
    assert hub.bodies == []


def test_two_simultaneous_pulls_of_one_model_download_it_once(hub: FakeHub, tmp_path: Path) -> None:
    hub.hang = threading.Event()
    first, second = (Pulls(Store(tmp_path / "home"), []) for _ in range(2))
    paths: list[Path] = []
    threads = [
        threading.Thread(target=lambda pulls=pulls: paths.append(pulls(f"hf:{REPO}", hub)))
        for pulls in (first, second)
    ]
    threads[0].start()
    until(lambda: hub.bodies, timeout_s=20)
    threads[1].start()
    until(lambda: second.said, timeout_s=20)
    assert "waiting for another pull" in second.said[0]
    hub.hang.set()
    for thread in threads:
        thread.join()
    assert paths[0] == paths[1]
    assert hub.bodies == [""]


def test_all_parts_of_a_split_model_are_read_and_pulled(hub: FakeHub, pulls: Pulls, tmp_path: Path) -> None:
    """The rank head is in the last part, where llama-gguf-split puts it."""
    tensors = {name: (10, 32) for name in ("token_embd.weight", "output_norm.weight", "cls.output.weight")}
    name = {"general.basename": "Qwen3-Reranker"}
    tokens = ("<|im_end|>", *ggufs.VOCABULARY[1:])
    ggufs.write(tmp_path / "tiny-Q8_0.gguf", tensors=tensors, tokens=tokens, extra=name, split_max_tensors=2)
    parts = {path.name: path.read_bytes() for path in tmp_path.glob("tiny-*.gguf")}
    assert sorted(parts) == ["tiny-Q8_0-00001-of-00002.gguf", "tiny-Q8_0-00002-of-00002.gguf"]
    hub.repos[REPO] = parts
    path = pulls(f"hf:{REPO}", hub)
    assert {one.name: one.read_bytes() for one in path.parent.iterdir()} == parts
    metadata = gguf_metadata.read(path)
    assert metadata.has_cls_output
    assert len(metadata.parts) == 2
    assert pulls.store.records()[0].files == tuple(sorted(parts))


def test_a_head_beside_a_gguf_file_is_pulled_with_it(hub: FakeHub, pulls: Pulls, tmp_path: Path) -> None:
    def resolved(metadata: ModelMetadata) -> Resolution:
        sizes = {"name": "Llama Nemotron Rerank 1b v2", "block_count": 16, "embedding_length": 2048}
        return resolve(dataclasses.replace(metadata, **sizes), catalog.known())

    body = ggufs.write(tmp_path / "tiny-Q8_0.gguf", arch="llama-embed").read_bytes()
    checkpoints.write(tmp_path / "head.safetensors", {"score.weight": ("F32", [1, 32], bytes(128))})
    head = (tmp_path / "head.safetensors").read_bytes()
    hub.repos[REPO] = {f"body/{FILE}": body, "head.safetensors": b"of another model"}
    with pytest.raises(Unscorable, match=r"drops score\.weight"):
        pulls(f"hf:{REPO}", hub, resolve=resolved)
    hub.repos[REPO]["body/head.safetensors"] = head
    path = pulls(f"hf:{REPO}", hub, resolve=resolved)
    found = {one.name: one.read_bytes() for one in path.parent.iterdir()}
    assert found == {FILE: body, "head.safetensors": head}
    assert gguf_metadata.read(path).has_cls_output
    assert pulls.store.records()[0].files == (FILE, "head.safetensors")


def test_a_disk_that_fills_up_during_the_download_leaves_a_resumable_part(
    hub: FakeHub, tmp_path: Path
) -> None:
    """A limit of the file size simulates the full disk: the write fails at the same point."""
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000)); sys.argv[0] = 'rerankd';"
        "from rerankd.cli import main; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, "pull", f"hf:{REPO}"],
        env=environment(tmp_path / "home", HF_ENDPOINT=hub.url),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 7, ended.stderr
    assert "Free disk space" in ended.stderr
    assert "Traceback" not in ended.stderr
    store = Store(tmp_path / "home")
    (part,) = store.models.rglob("*.part")
    assert os.path.getsize(part) == 400_000
    assert store.records() == ()


CHECKPOINT = {path.name: path.read_bytes() for path in (GOLDEN / "bert-pairs").iterdir()}
CHECKPOINT_SIZE = size_words(sum(map(len, CHECKPOINT.values())))


@pytest.fixture
def checkpoint_hub() -> Iterator[FakeHub]:
    others = {"pytorch_model.bin": b"pickle", "onnx/model.onnx": b"onnx", "onnx/config.json": b"{}"}
    with fake_hub(repos={"org/pairs": CHECKPOINT | others, "org/pickled": others}) as running:
        yield running


@pytest.mark.parametrize("kind", ["hf", "ms"])
def test_a_checkpoint_is_pulled_with_all_its_files(checkpoint_hub: FakeHub, pulls: Pulls, kind: str) -> None:
    hubs = (checkpoint_hub, NOWHERE) if kind == "hf" else (NOWHERE, checkpoint_hub)
    path = pulls(f"{kind}:org/pairs", *hubs)
    assert path == pulls.store.models / f"{kind}--org--pairs"
    assert {one.name: one.read_bytes() for one in path.iterdir()} == CHECKPOINT
    assert pulls.store.locate(f"{kind}:org/pairs", lambda *_: None) == path
    assert f"model.safetensors ({CHECKPOINT_SIZE}), safetensors, unquantised" in "".join(pulls.said)
    pulls.store.index.unlink()
    assert [record.name for record in pulls.store.records()] == [f"{kind}:org/pairs"]
    pulls.store.remove(pulls.store.records()[0])
    assert not path.exists()


def test_a_checkpoint_of_a_new_revision_is_downloaded_again(checkpoint_hub: FakeHub, pulls: Pulls) -> None:
    path = pulls("hf:org/pairs", checkpoint_hub)
    pulls("hf:org/pairs", checkpoint_hub)
    assert "already" in pulls.said[-1]
    # The size is unchanged, and hubs report no checksum for small files.
    changed = CHECKPOINT["tokenizer_config.json"].replace(b"128", b"100")
    checkpoint_hub.repos["org/pairs"]["tokenizer_config.json"] = changed
    checkpoint_hub.commit = "1" * 40
    pulls("hf:org/pairs", checkpoint_hub)
    assert (path / "tokenizer_config.json").read_bytes() == changed


def test_files_of_an_earlier_pull_of_another_revision_are_not_reused(
    checkpoint_hub: FakeHub, pulls: Pulls
) -> None:
    """Hubs report no checksum for small files, and the size may be unchanged."""
    staged = pulls.store.staging("hf--org--pairs")
    staged.mkdir(parents=True)
    old = CHECKPOINT["tokenizer_config.json"].replace(b"128", b"100")
    (staged / "tokenizer_config.json").write_bytes(old)
    path = pulls("hf:org/pairs", checkpoint_hub)
    assert (path / "tokenizer_config.json").read_bytes() == CHECKPOINT["tokenizer_config.json"]


def test_a_checkpoint_larger_than_memory_is_rejected_by_its_weights(
    checkpoint_hub: FakeHub, pulls: Pulls
) -> None:
    with pytest.raises(
        ModelFileError, match=rf"model\.safetensors has {CHECKPOINT_SIZE}, more than the 1 KiB"
    ):
        pulls("hf:org/pairs", checkpoint_hub, memory_bytes=1024)


def test_a_checkpoint_that_can_not_be_scored_is_refused_before_the_download(
    checkpoint_hub: FakeHub, pulls: Pulls
) -> None:
    config = CHECKPOINT["config.json"].replace(b"BertFor", b"DebertaFor")
    checkpoint_hub.repos["org/pairs"]["config.json"] = config
    with pytest.raises(Unscorable, match="DebertaForSequenceClassification"):
        pulls("hf:org/pairs", checkpoint_hub)
    assert pulls.store.records() == ()
    assert not any("model.safetensors" in body for body in checkpoint_hub.bodies)


def test_an_incomplete_checkpoint_and_a_quantisation_of_one_are_rejected(
    checkpoint_hub: FakeHub, pulls: Pulls
) -> None:
    with pytest.raises(UnknownModel, match="no complete safetensors model"):
        pulls("hf:org/pickled", checkpoint_hub)
    with pytest.raises(UnknownModel, match="pulled as a whole"):
        pulls("hf:org/pairs:Q8_0", checkpoint_hub)
