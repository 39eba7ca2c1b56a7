"""`rerankd mcp` with the protocol's official client over both transports, and by hand over pipes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import httpx
import httpx2
import pytest
from mcp import Client, StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from typer.main import get_command

from rerankd import mcp_server
from rerankd.cli import app
from rerankd.errors import InvalidRequest, MissingExtra
from rerankd.mcp_server import folder, search_index
from rerankd.mcp_server.folder import Skipped, Unusable
from rerankd.mcp_server.passages import MOST_BYTES, cut
from rerankd.mcp_server.search_index import SearchIndex
from support import ROOT, Program, children, environment, post, rerankd, until, wait_until_gone

PANDAS = "The giant panda is a bear that lives in the mountains of central China and eats bamboo."
BREAD = "Bread is baked from dough of flour and water."


# passages


def test_passages_know_their_lines() -> None:
    text = "\n\n# Title\r\nfirst\n\n" + "a word " * 100 + "\n\nlast\n\n\n"
    assert [(one.first, one.last) for one in cut(text)] == [(3, 6), (8, 8)]
    assert next(cut(text)).text.startswith("# Title\nfirst\n\na word")
    assert list(cut(" \n\n")) == []


@pytest.mark.parametrize("line", ["word " * 1000, "大熊猫吃竹子。" * 400, "x" * 5000])
def test_a_long_line_is_cut_into_passages_of_that_line(line: str) -> None:
    found = list(cut(f"before\n{line}\nafter"))
    assert [(one.first, one.last) for one in found[1:-1]] == [(2, 2)] * (len(found) - 2)
    assert max(len(one.text.encode()) for one in found) <= MOST_BYTES + 3
    assert "".join(one.text for one in found[1:-1]).replace(" ", "") == line.replace(" ", "")


def test_every_line_is_in_one_passage() -> None:
    lines = [f"line {number} " + "x" * (number % 97) for number in range(1, 500)]
    found = list(cut("\n".join(lines)))
    assert [line for one in found for line in one.text.split("\n")] == lines
    assert [one.first for one in found[1:]] == [one.last + 1 for one in found[:-1]]


# the folder


def built(root: Path, start: tuple[str, ...] = (), last: SearchIndex | None = None) -> SearchIndex:
    *_, step = search_index.build(root, start, last)
    assert step.result is not None
    return step.result


def reasons(index: SearchIndex) -> dict[str, list[str]]:
    kinds = (index.skipped.examples, index.unread.examples)
    return {
        reason: [path for one in kinds for path in one.get(reason, ())] for one in kinds for reason in one
    }


@pytest.mark.parametrize("path", ["/etc/passwd", "../secret", "docs/../../secret", "~/x", "a\\b", "a\0b"])
def test_a_path_that_leads_outside_is_refused(path: str) -> None:
    with pytest.raises(InvalidRequest, match="is not allowed"):
        folder.components(path)


@pytest.mark.parametrize("path", [".git/config", "a/.env"])
def test_a_hidden_path_is_refused(path: str) -> None:
    with pytest.raises(InvalidRequest, match="is hidden"):
        folder.components(path)


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[Path]:
    """A folder with everything in it that must not be read, beside two files that may be."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("the secret of the panda")
    root = tmp_path / "root"
    (root / "notes").mkdir(parents=True)
    (root / "notes" / "pandas.md").write_text(PANDAS)
    (root / "windows.txt").write_bytes(BREAD.encode("utf-16"))
    (root / "link.txt").symlink_to(outside / "secret.txt")
    (root / "linked").symlink_to(outside)
    (root / "loop").symlink_to(root)
    (root / "null.txt").symlink_to("/dev/null")
    os.mkfifo(root / "fifo.txt")
    with socket.socket(socket.AF_UNIX) as sock, contextlib.chdir(root):
        sock.bind("socket.txt")
    with (root / "huge.txt").open("wb") as huge:
        huge.truncate(2**40)
    (root / "picture.png").write_bytes(bytes(range(256)))
    (root / "zeros.txt").write_bytes(b"panda\0panda")
    (root / ".git").mkdir()
    (root / ".git" / "config").write_text("panda")
    (root / ".env").write_text("panda")
    (root / "node_modules").mkdir()
    (root / os.fsdecode(b"latin-\xe9.txt")).write_text("a panda in a file whose name is not UTF-8")
    yield root


def test_a_hostile_folder_gives_only_its_text_files(hostile: Path) -> None:
    index = built(hostile)
    assert [one.path for one in index.passages] == ["latin-\\xe9.txt", "windows.txt", "notes/pandas.md"]
    assert "secret" not in str(index.passages)
    assert reasons(index) == {
        "a link; links are not followed": ["linked/", "loop/", "link.txt"],
        "hidden": [".git/", ".env"],
        "dependencies or caches": ["node_modules/"],
        "not a regular file": ["fifo.txt", "socket.txt"],
        "larger than 1 MiB": ["huge.txt"],
        "not a text file in UTF-8": ["picture.png", "zeros.txt"],
    }
    assert index.skipped.counts["a link; links are not followed"] == 4


@pytest.mark.parametrize(
    "path", ["link.txt", "linked", "linked/secret.txt", "fifo.txt", "huge.txt", "absent"]
)
def test_a_named_path_that_is_not_searched_is_refused_with_the_reason(hostile: Path, path: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^'{path.split('/')[0]}"):
        built(hostile, folder.components(path))


def test_a_file_or_a_subfolder_can_be_searched_alone(hostile: Path) -> None:
    for start in (("notes",), ("notes", "pandas.md")):
        index = built(hostile, start)
        assert ([one.path for one in index.passages], reasons(index)) == (["notes/pandas.md"], {})


def test_what_becomes_a_link_or_a_pipe_after_the_scan_is_not_read(hostile: Path) -> None:
    (found,) = [one for one in folder.scan(hostile, ("notes",), Skipped()) if one]
    assert folder.read(hostile, found.path) == PANDAS
    (hostile / "notes" / "pandas.md").unlink()
    os.mkfifo(hostile / "notes" / "pandas.md")
    with pytest.raises(Unusable, match="not a regular file"):
        folder.read(hostile, found.path)
    (hostile / "notes" / "pandas.md").unlink()
    (hostile / "notes" / "pandas.md").symlink_to(hostile.parent / "outside" / "secret.txt")
    with pytest.raises(Unusable, match="unreadable"):
        folder.read(hostile, found.path)
    (hostile / "notes").rename(hostile / "away")
    (hostile / "notes").symlink_to(hostile.parent / "outside")
    with pytest.raises(Unusable, match="can't be opened as a folder"):
        folder.read(hostile, "notes/secret.txt")
    (hostile / "notes").unlink()
    with pytest.raises(Unusable, match="can't be opened as a folder: No such file"):
        folder.read(hostile, found.path)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_a_file_whose_content_is_not_what_its_size_says_is_skipped() -> None:
    with pytest.raises(Unusable, match="changed while it was read"):
        folder.read(Path("/proc/self"), "status")


def test_an_unreadable_file_and_folder_are_skipped(hostile: Path) -> None:
    (hostile / "notes").chmod(0)
    (hostile / "windows.txt").chmod(0)
    hostile.chmod(0o755)
    hostile.parent.chmod(0o755)
    own = os.geteuid()
    if own == 0:  # root may read everything
        for parent in hostile.parents:
            if not os.stat(parent).st_mode & 0o001:
                parent.chmod(0o711)
        os.seteuid(65534)
    try:
        found = reasons(built(hostile))
    finally:
        os.seteuid(own)
        (hostile / "notes").chmod(0o755)
    assert found["unreadable: Permission denied"] == ["notes", "windows.txt"]


def test_a_folder_with_too_many_files_is_searched_up_to_the_bound(tmp_path: Path) -> None:
    for number in range(folder.MOST_FILES + 1):
        (tmp_path / f"{number:05}").touch()
    skipped = Skipped()
    found = [one for one in folder.scan(tmp_path, (), skipped) if one]
    assert (len(found), found[-1].path) == (10_000, "09999")
    assert skipped.examples == {"this and all later files: more than 10,000": ["10000"]}


def test_a_folder_with_too_many_folders_is_searched_up_to_the_bound(tmp_path: Path) -> None:
    for number in range(folder.MOST_FOLDERS):
        (tmp_path / f"{number:05}").mkdir()
    assert reasons(built(tmp_path)) == {"this and all later folders: more than 10,000": ["09999/"]}


def test_a_folder_with_too_much_text_is_searched_up_to_the_bound(tmp_path: Path) -> None:
    for number in range(17):
        (tmp_path / f"{number:02}").write_bytes(b"x" * 2**20)
    index = built(tmp_path)
    assert len({one.path for one in index.passages}) == 16
    assert index.unread.examples == {"after the first 16 MiB of text": ["16"]}


def test_a_deep_folder_is_searched_up_to_the_bound(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * (folder.MOST_DEPTH + 2))
    deep.mkdir(parents=True)
    (deep / "pandas.md").write_text(PANDAS)
    index = built(tmp_path)
    assert (index.passages, list(index.skipped.counts)) == ((), ["more than 32 folders deep"])
    assert built(tmp_path, ("d", "d")).passages


def test_unchanged_files_are_not_read_again(hostile: Path) -> None:
    before = built(hostile)
    (hostile / ".new").touch()
    again = built(hostile, last=before)
    assert again.passages is before.passages
    assert again.skipped.counts["hidden"] == before.skipped.counts["hidden"] + 1
    (hostile / "notes" / "pandas.md").write_text("something else")
    assert "something else" in str(built(hostile, last=again).passages)
    assert built(hostile, ("notes",), again).start == ("notes",)


def test_the_first_stage_is_used_only_if_there_are_more_passages(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.md").write_text(PANDAS if number == 3 else f"{BREAD} {number}")
    index = built(tmp_path)
    assert len(index.best("pandas", 5)) == 5
    assert [one.path for one in index.best("pandas", 4)] == ["3.md"]
    assert index.best("zebra", 4) == []
    (tmp_path / "empty").mkdir()
    assert built(tmp_path, ("empty",)).best("pandas", 4) == []


# over both transports

Connect = Callable[[], contextlib.AbstractAsyncContextManager[Client]]


@contextlib.contextmanager
def over_http(home: Path, *arguments: str, **env: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run `rerankd mcp --http`; yields its URL and its process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rerankd", "mcp", "--http", "--port", "0", *arguments],
        env=environment(home, **env),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        url = next(found[0] for line in process.stderr if (found := re.search(r"http://\S+", line)))
        yield url, process
    finally:
        process.terminate()
        process.wait(30)
        process.stderr.close()


@pytest.fixture(params=["stdio", "http"])
def connect(request: pytest.FixtureRequest, home: Path, hostile: Path, free_port: str) -> Iterator[Connect]:
    """Connect the official client to `rerankd mcp` on the hostile folder."""
    arguments = ["--folder", str(hostile)]
    if request.param == "http":
        with over_http(home, *arguments, RERANKD_PORT=free_port) as (url, _):
            yield lambda: Client(url)
        return
    command = StdioServerParameters(
        command=sys.executable,
        args=["-m", "rerankd", "mcp", *arguments],
        env=environment(home, RERANKD_PORT=free_port),
    )
    yield lambda: Client(stdio_client(command))


@pytest.fixture
def free_port() -> str:
    """A port at which no server answers."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return str(sock.getsockname()[1])


async def test_the_tools_rank_and_search_with_an_engine_of_their_own(connect: Connect) -> None:
    async with connect() as client:
        listed = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert listed.keys() == {"rerank", "search"}
        assert all(tool.annotations and tool.annotations.read_only_hint for tool in listed.values())
        assert listed["search"].input_schema["properties"]["top_n"]["maximum"] == 50
        asked = {"query": "what do pandas eat?", "documents": [BREAD, PANDAS], "top_n": 1}
        ranked = await client.call_tool("rerank", asked)
        value = ranked.structured_content
        assert value is not None and not ranked.is_error
        assert [row["index"] for row in value["results"]] == [1]
        assert (value["model"], value["scored_by"]) == ("builtin:e5", "an engine of this MCP server")
        assert json.loads(ranked.content[0].text) == value  # type: ignore[union-attr]

        said: list[tuple[float, str | None]] = []

        async def progress(done: float, total: float | None, message: str | None) -> None:
            said.append((done, message))

        found = await client.call_tool("search", {"query": "what do pandas eat?"}, progress_callback=progress)
        answer = found.structured_content
        assert answer is not None and not found.is_error
        best = answer["passages"][0]
        assert (best["path"], best["first_line"], best["text"]) == ("notes/pandas.md", 1, PANDAS)
        assert (answer["searched_files"], answer["reranked_passages"]) == (3, 3)
        assert "not a regular file" in [one["reason"] for one in answer["skipped"]]
        assert [number for number, _ in said] == sorted({number for number, _ in said})
        assert said[-1][1] == "reranking 3 passages"


WRONG_CALLS: list[tuple[str, dict[str, Any], str]] = [
    ("rerank", {"query": "", "documents": ["a"]}, "query is empty"),
    ("rerank", {"query": "q", "documents": []}, "'documents' is a list, but must have at least 1 elements"),
    ("rerank", {"query": "q", "documents": "a"}, "'documents' is the string \"a\", but must be a list"),
    ("rerank", {"documents": ["a"]}, "'query' is missing. Send JSON like"),
    ("search", {"query": " "}, "query is empty"),
    ("search", {"query": "q", "path": "../outside"}, "is not allowed"),
    ("search", {"query": "q", "path": "linked/secret.txt"}, "Links are not followed"),
    ("search", {"query": "q", "top_n": 0}, "'top_n' is the number 0, but must be at least 1"),
    ("search", {"query": "q", "folder": "x"}, "there is no such field"),
    ("delete", {}, "The tool 'delete' does not exist. The tools are rerank, search."),
]


async def test_a_wrong_call_is_a_tool_error_in_a_sentence(connect: Connect) -> None:
    async with connect() as client:
        for tool, arguments, says in WRONG_CALLS:
            answer = await client.call_tool(tool, arguments)
            assert answer.is_error
            assert says in answer.content[0].text, (tool, arguments)  # type: ignore[union-attr]


async def test_without_a_folder_there_is_no_search(home: Path, free_port: str) -> None:
    with over_http(home, RERANKD_PORT=free_port) as (url, _):
        async with Client(url) as client:
            assert [tool.name for tool in (await client.list_tools()).tools] == ["rerank"]


async def test_a_running_server_is_used_and_its_errors_are_passed_on(
    home: Path, serve: Callable[..., Program]
) -> None:
    server = serve("--api-key", "right")
    port = server.url.rpartition(":")[2]
    call = {"query": "pandas", "documents": [BREAD, PANDAS]}
    with over_http(home, RERANKD_PORT=port, RERANKD_API_KEY="right") as (url, process):
        async with _with_key(url, "right") as client:
            answer = (await client.call_tool("rerank", call)).structured_content
            assert answer is not None
            assert answer["scored_by"] == f"the server at http://127.0.0.1:{port}"
            assert answer["results"][0]["index"] == 1
            wrong = await client.call_tool("rerank", {**call, "query": ""})
            assert wrong.is_error and "reports: " in wrong.content[0].text  # type: ignore[union-attr]
            assert children(process.pid) == []
            server.stop()
            # Without it an engine is started, and kept.
            answer = (await client.call_tool("rerank", call)).structured_content
            assert answer is not None and answer["scored_by"] == "an engine of this MCP server"
            assert children(process.pid) != []


@pytest.mark.parametrize("mode", ["legacy", "auto"])  # a notification, or the end of the request's stream
async def test_a_cancelled_search_frees_the_engine(
    mode: str, home: Path, tmp_path: Path, serve: Callable[..., Program]
) -> None:
    for number in range(60):
        (tmp_path / f"{number}.md").write_text(f"{PANDAS} {number} " * 12)
    server = serve()
    with over_http(home, "--folder", str(tmp_path), RERANKD_PORT=server.url.rpartition(":")[2]) as (url, _):
        async with Client(url, mode=mode) as client:
            scope = anyio.CancelScope()

            async def progress(done: float, total: float | None, message: str | None) -> None:
                if message and message.startswith("reranking"):
                    await shows('queue_requests{model="builtin:e5"} 1.0')
                    scope.cancel()

            async def shows(line: str) -> None:
                def is_shown() -> bool:
                    return line in httpx.get(f"{server.url}/metrics", trust_env=False).text

                await anyio.to_thread.run_sync(until, is_shown, 60)

            with scope:
                await client.call_tool("search", {"query": "pandas"}, progress_callback=progress)
            assert scope.cancelled_caught
            await shows('status="499"')
            answer = await client.call_tool("rerank", {"query": "q", "documents": ["a"]})
            assert not answer.is_error


# the process, its pipes and its engine


class Pipes:
    """`rerankd mcp` over pipes, spoken to by hand: every line of its standard output must be a message."""

    def __init__(self, home: Path, *arguments: str, **env: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rerankd", "mcp", *arguments],
            env=environment(home, **env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.asked = 0
        client = {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "t", "version": "1"},
        }
        self.request("initialize", **client)
        self.answer()
        self.send("notifications/initialized")

    def send(self, method: str, **message: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"jsonrpc": "2.0", "method": method, **message}) + "\n")
        self.process.stdin.flush()

    def request(self, method: str, **params: Any) -> None:
        self.asked += 1
        self.send(method, id=self.asked, params=params)

    def rerank(self, *documents: str) -> None:
        self.request("tools/call", name="rerank", arguments={"query": "pandas", "documents": documents})

    def answer(self) -> Any:
        """The next message."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"it has ended: {self.said()}"
        return json.loads(line)

    def said(self) -> str:
        """Standard error to its end."""
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def test_a_request_with_half_a_character_is_answered(home: Path, free_port: str) -> None:
    """The SDK drops what it can't parse, and the client would wait."""
    started = Pipes(home, RERANKD_PORT=free_port)
    try:
        assert started.process.stdin is not None
        started.process.stdin.write('no request\n[[\n{"id": "\\ud800", "method": "\\ud800"}\n')
        started.rerank("a", "half of a panda: \ud83d")
        answer = started.answer()
        assert answer["id"] == started.asked and "not valid JSON in Unicode" in answer["error"]["message"]
        started.request("ping")
        assert started.answer() == {"jsonrpc": "2.0", "id": started.asked, "result": {}}
    finally:
        started.end()


@pytest.fixture
def pipes(home: Path, free_port: str) -> Iterator[Pipes]:
    """A process with a running engine of its own."""
    started = Pipes(home, RERANKD_PORT=free_port, RERANKD_LOG_LEVEL="debug")
    started.rerank(BREAD, PANDAS)
    assert started.answer()["result"]["structuredContent"]["results"][0]["index"] == 1
    yield started
    started.end()


def test_the_end_of_standard_input_ends_the_process_and_its_engine(pipes: Pipes) -> None:
    engines = children(pipes.process.pid)
    assert engines
    out, said = pipes.process.communicate(timeout=60)
    assert (pipes.process.returncode, out) == (0, "")
    assert "Traceback" not in said
    wait_until_gone(engines)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_and_its_engine(pipes: Pipes, number: int) -> None:
    engines = children(pipes.process.pid)
    pipes.process.send_signal(number)
    assert pipes.process.wait(60) == 0
    wait_until_gone(engines)


def test_a_killed_process_leaves_no_engine(pipes: Pipes) -> None:
    engines = children(pipes.process.pid)
    pipes.process.kill()
    wait_until_gone(engines)


def test_a_client_that_goes_away_in_mid_call_leaves_no_process(pipes: Pipes) -> None:
    engines = children(pipes.process.pid)
    pipes.rerank(*(f"{PANDAS} {number} " * 20 for number in range(300)))
    assert pipes.process.stdin is not None and pipes.process.stdout is not None
    pipes.process.stdin.close()
    pipes.process.stdout.close()
    assert pipes.process.wait(60) == 0
    assert "Traceback" not in pipes.said()
    wait_until_gone(engines)


def test_a_cancelled_call_gets_no_result_and_the_next_one_does(pipes: Pipes) -> None:
    pipes.rerank(*(f"{PANDAS} {number} " * 20 for number in range(300)))
    cancelled = pipes.asked
    pipes.send("notifications/cancelled", params={"requestId": cancelled})
    pipes.rerank("a", PANDAS)
    answers = [pipes.answer()]
    while answers[-1]["id"] != pipes.asked:
        answers.append(pipes.answer())
    assert "result" in answers[-1]
    assert not [one for one in answers if one["id"] == cancelled and "result" in one]


def test_lines_that_are_no_messages_are_survived(pipes: Pipes) -> None:
    assert pipes.process.stdin is not None
    pipes.process.stdin.write("\nnot json\n[]\n{}\n" + "x" * 10**6 + "\n")
    pipes.rerank(PANDAS, "a")
    while (answer := pipes.answer()).get("id") != pipes.asked:
        assert "result" not in answer
    assert answer["result"]["structuredContent"]["results"][0]["index"] == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_a_standard_output_that_can_not_be_written_is_reported(home: Path) -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "rerankd", "mcp"],
            env=environment(home),
            input=json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping"}) + "\n",
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert ended.returncode == 1
    assert "can't be answered on standard output: No space left on device" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_engine_that_does_not_start_is_a_tool_error_and_tried_again(home: Path, free_port: str) -> None:
    started = Pipes(home, "--model", "/nowhere/model.gguf", RERANKD_PORT=free_port)
    try:
        for _ in range(2):
            started.rerank("a")
            result = started.answer()["result"]
            assert (result["isError"], "/nowhere/model.gguf" in result["content"][0]["text"]) == (True, True)
    finally:
        started.end()


# HTTP


@contextlib.asynccontextmanager
async def _with_key(url: str, key: str) -> AsyncIterator[Client]:
    headers = {"authorization": f"Bearer {key}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        yield client


def test_http_checks_host_origin_and_key_as_the_service_does(home: Path, free_port: str) -> None:
    with over_http(home, RERANKD_PORT=free_port) as (url, _):
        for headers, says in (
            ({"host": "evil.example"}, "The host name 'evil.example' is not allowed"),
            ({"origin": "http://evil.example"}, "A web page from 'http://evil.example' is not allowed"),
        ):
            refused = post(url, {}, **headers)
            assert refused.status_code == 403
            assert says in refused.json()["message"]
        assert post(url, {}).status_code in (400, 406)
    with over_http(home, RERANKD_PORT=free_port, RERANKD_API_KEY="right") as (url, _):
        for sent in ({}, {"authorization": "Bearer wrong"}):
            assert post(url, {}, **sent).status_code == 401
        assert post(url, {}, **{"x-api-key": "right"}).status_code in (400, 406)


def test_http_listens_on_this_machine_only(home: Path, free_port: str) -> None:
    with over_http(home, RERANKD_PORT=free_port) as (url, process):
        assert url.startswith("http://localhost:")
        port = f"{int(url.split(':')[2].partition('/')[0]):04X}"
        listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()]
        assert [one for one in listening if one.endswith(f":{port}") and not one.startswith("00000000")]
        assert f"00000000:{port}" not in listening
        process.terminate()
        assert process.wait(60) == 0


# the command


def test_a_folder_that_can_not_be_searched_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, says in (
        ("absent", "is not a folder"),
        ("file", "is not a folder"),
        ("/", "the whole file system"),
    ):
        ended = rerankd("mcp", "--folder", str(tmp_path / name), home=tmp_path)
        assert (ended.returncode, ended.stdout, says in ended.stderr) == (2, "", True), ended.stderr


def test_missing_libraries_are_reported_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_server, "find_spec", lambda name: None if name == "mcp" else object())
    with pytest.raises(
        MissingExtra, match=r"not installed: mcp\. To install them: pip install 'rerankd\[mcp\]'"
    ):
        mcp_server.check_installed()


def test_the_configurations_of_the_documentation_start_it() -> None:
    page = (ROOT / "docs" / "mcp.md").read_text(encoding="utf-8")
    found = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL)]
    command = get_command(app).commands["mcp"]  # type: ignore[attr-defined]
    for one in found:
        (servers,) = one.values()
        (server,) = servers.values()
        assert Path(server["command"]).name == "rerankd"
        name, *arguments = server["args"]
        assert name == "mcp"
        command.make_context(name, arguments)
    assert len(found) == 2
