"""A fake llama-server that fails on demand: a real program for the real supervisor to run.

It accepts the flags that rerankd passes to a llama-server and serves the same paths on a UNIX socket. Its
scores are those of `raw`. Its own flags select a fault. `install` writes them into a start script, because
the setting `llama_path` is only a path. "Calls" are calls that compute; a load makes CALLS_AT_LOAD of them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import socket
import stat
import sys
import threading
import time
from pathlib import Path
from typing import Any

# prepare() makes one call, the self-test three.
CALLS_AT_LOAD = 4
INVALID_RESPONSES = ("nan", "few", "garbage", "text", "error", "close")
# Valid responses with wrong scores.
WRONG_SCORES = ("same", "place")


def raw(query: str, text: str) -> float:
    """Return the raw score of a pair: a pseudo-random number in [-4, 4), the same in each call."""
    digest = hashlib.blake2b(f"{query}\0{text}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") / 2**32 * 8 - 4


def install(folder: Path, *flags: str) -> Path:
    """Write a program to `folder` that runs this file with `flags`, for the setting `llama_path`."""
    program = folder / "fake-llama-server"
    quoted = " ".join(f"'{flag}'" for flag in flags)
    program.write_text(f"#!/bin/sh\nexec '{sys.executable}' -I -S '{__file__}' {quoted} \"$@\"\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(allow_abbrev=False)
    flags.add_argument("--host", required=True)
    flags.add_argument("--slow-load", type=float, default=0, help="seconds until it is ready")
    flags.add_argument("--load-gate", default="", help="a path: it is ready once this file exists")
    flags.add_argument("--die-at-start", action="store_true", help="exit with code 7 before it listens")
    flags.add_argument("--die-after", type=float, help="exit with code 8 N seconds after it listens")
    flags.add_argument("--crash-after", type=int, help="SIGKILL itself in the call after N calls")
    flags.add_argument("--crash-on", default="", help="SIGSEGV if a document contains one of these words")
    flags.add_argument("--crash-on-query", default="", help="SIGSEGV if the query contains this text")
    flags.add_argument(
        "--crash-on-count", default="", help="SIGSEGV if a text to tokenize contains this text"
    )
    flags.add_argument(
        "--crash-with", default="", help="SIGSEGV at load if rerankd's flags contain this text"
    )
    flags.add_argument("--crash-with-after", type=int, default=0, help="the same, in the call after N calls")
    flags.add_argument("--kill-on", default="", help="SIGKILL itself if a document contains this text")
    flags.add_argument("--stall-on", default="", help="never answer a call if a document contains this text")
    flags.add_argument("--error-on", default="", help="return an error if a document contains this text")
    flags.add_argument("--errors", default="", help="a path: return only errors while this file exists")
    flags.add_argument("--ignore-term", action="store_true")
    flags.add_argument("--bad-scores", choices=INVALID_RESPONSES + WRONG_SCORES)
    flags.add_argument("--bad-after", type=int, default=CALLS_AT_LOAD, help="valid calls before --bad-scores")
    flags.add_argument("--hang-after", type=int, help="SIGSTOP itself in the call after N calls")
    flags.add_argument("--stall-after", type=int, help="after N calls, answer neither calls nor /slots")
    flags.add_argument("--chatter", action="store_true", help="write output without end")
    flags.add_argument("--delay-ms", type=float, default=0, help="milliseconds per document")
    flags.add_argument("--grow-mib", type=int, default=0, help="memory that each call leaks")
    flags.add_argument(
        "--only-first", default="", help="a path: only the first process to open it has faults"
    )
    flags.add_argument("--only-second", default="", help="a path: only the second process has faults")
    return flags


def end(sign: signal.Signals) -> None:
    """Send a signal to this process. Never returns."""
    os.kill(os.getpid(), sign)
    threading.Event().wait()  # the thread may keep running for a moment


class Fake:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.calls = 0
        self.kept: list[bytes] = []
        self.lock = threading.Lock()  # llama.cpp computes one batch at a time, too
        self.stalled = threading.Event()

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any] | None:
        """Return status and body, or None to close the connection in the middle of the response."""
        if path == "/health":
            return 200, {"status": "ok"}
        if path == "/slots":
            if self.stalled.is_set():
                threading.Event().wait()
            return 200, []
        if path == "/tokenize":
            content = body["content"]
            parts = content if isinstance(content, list) else [content]
            bad = self.options.crash_on_count
            if bad and any(isinstance(part, str) and bad in part for part in parts):
                end(signal.SIGSEGV)
            ids = [[part] if isinstance(part, int) else list(part.encode()) for part in parts]
            tokens = [token for part in ids for token in part]
            if body.get("with_pieces"):
                pieces = [chr(token) if token < 128 else [token] for token in tokens]
                named = [{"id": token, "piece": piece} for token, piece in zip(tokens, pieces, strict=True)]
                return 200, {"tokens": named}
            return 200, {"tokens": tokens}
        if path == "/v1/rerank":
            with self.lock:
                return self.rerank(body["query"], body["documents"])
        return 404, {"error": {"message": "File Not Found"}}

    def rerank(self, query: str, documents: list[str]) -> tuple[int, Any] | None:
        options = self.options
        self.calls += 1
        if options.crash_after is not None and self.calls > options.crash_after:
            print("about to crash, as asked", flush=True)
            end(signal.SIGKILL)
        text = "\n".join(documents)
        if options.crash_with and self.calls > options.crash_with_after:
            end(signal.SIGSEGV)
        if any(word in text for word in options.crash_on.split()) or (
            options.crash_on_query and options.crash_on_query in query
        ):
            end(signal.SIGSEGV)
        if options.kill_on and options.kill_on in text:
            end(signal.SIGKILL)
        if options.stall_on and options.stall_on in text:
            self.stalled.set()
            threading.Event().wait()
        if (options.error_on and options.error_on in text) or (
            options.errors and os.path.exists(options.errors)
        ):
            return 500, {"error": {"message": "CUDA error: something broke"}}
        if options.hang_after is not None and self.calls > options.hang_after:
            end(signal.SIGSTOP)
        if options.stall_after is not None and self.calls > options.stall_after:
            self.stalled.set()
            threading.Event().wait()
        if options.grow_mib:
            self.kept.append(os.urandom(options.grow_mib * 2**20))
        time.sleep(len(documents) * options.delay_ms / 1000)
        rows = [{"index": at, "relevance_score": raw(query, text)} for at, text in enumerate(documents)]
        rows.sort(key=lambda row: -row["relevance_score"])
        tokens = sum(len(query.encode()) + len(text.encode()) + 4 for text in documents)
        good = {"results": rows, "usage": {"prompt_tokens": tokens}}
        if options.bad_scores is None or self.calls <= options.bad_after:
            return 200, good
        return {
            "nan": (200, {**good, "results": [{**row, "relevance_score": None} for row in rows]}),
            "few": (200, {**good, "results": rows[:-1]}),
            "garbage": (200, {"results": [{"index": "one"}], "usage": []}),
            "text": (200, "\x00\xff this is not JSON"),
            "error": (500, {"error": {"message": "something broke"}}),
            "close": None,
            "same": (200, {**good, "results": [{**row, "relevance_score": 1e-20} for row in rows]}),
            "place": (
                200,
                {**good, "results": [{**row, "relevance_score": row["index"] / 2} for row in rows]},
            ),
        }[options.bad_scores]


def serve_connection(fake: Fake, connection: socket.socket) -> None:
    with connection, connection.makefile("rb") as stream:
        while line := stream.readline():
            path = line.split()[1].decode()
            size = 0
            while (header := stream.readline()) not in (b"\r\n", b""):
                name, _, value = header.partition(b":")
                if name.lower() == b"content-length":
                    size = int(value)
            body = json.loads(stream.read(size)) if size else {}
            answer = fake.answer(path, body)
            if answer is None:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4096\r\n\r\n{")
                return
            status, value = answer
            data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
            try:
                connection.sendall(
                    b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (status, len(data)) + data
                )
            except OSError:
                return


def chatter() -> None:
    while True:
        sys.stdout.write("x" * 199 + "\n")


def _turn(path: str) -> int:
    """Return how many processes have opened `path`, including this one; 0 without a path."""
    if not path:
        return 0
    with open(path, "a+") as stream:
        stream.write(".")
        stream.flush()
        return os.fstat(stream.fileno()).st_size


def main() -> int:
    options, _ = parser().parse_known_args()
    # rerankd's flags come last.
    is_bad = options.crash_with and options.crash_with in " ".join(sys.argv).partition(" --model ")[2]
    if not is_bad:
        options.crash_with = ""
    turn = _turn(options.only_first or options.only_second)
    if (options.only_first and turn != 1) or (options.only_second and turn != 2):
        options = parser().parse_args(["--host", options.host])
    if options.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("fake engine: loading", flush=True)
    if options.crash_with and not options.crash_with_after:
        end(signal.SIGSEGV)
    if options.die_at_start:
        print("fake engine: no such tensor, as asked", flush=True)
        return 7
    if options.chatter:
        threading.Thread(target=chatter, daemon=True).start()
    time.sleep(options.slow_load)
    while options.load_gate and not os.path.exists(options.load_gate):
        time.sleep(0.02)
    fake = Fake(options)
    server = socket.socket(socket.AF_UNIX)
    server.bind(options.host)
    server.listen(64)
    if options.die_after is not None:
        threading.Timer(options.die_after, lambda: os._exit(8)).start()
    while True:
        connection, _ = server.accept()
        threading.Thread(target=serve_connection, args=(fake, connection), daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
