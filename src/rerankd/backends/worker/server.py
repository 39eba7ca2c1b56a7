"""What the worker says over HTTP on its UNIX socket. Bodies are JSON.

    GET  /health            200 once the model is loaded, at any time
    GET  /work?after=N      {"steps": n} once the computing thread has taken more than N steps
    GET  /info              {"about", "around_pair", "around_text", "window"}
    POST /count {"texts"}   {"counts"}: tokens of each text, without any around it
    POST /ids {"query", "text"}   {"ids"}: what the model reads of a pair, or of a query and a text
    POST /score {"query", "texts"}   {"values", "tokens"}: raw values in order, and the tokens read for them

An error is {"error": words}, with 413 for a text longer than the window, 400 for an invalid body,
and 500 for anything else. Who hangs up is computed for no longer.
"""

from __future__ import annotations

import json
import select
import socket
import socketserver
import sys
import traceback
from concurrent.futures import wait
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from rerankd.backends.worker.runner import Job
from rerankd.backends.worker.scorer import Scorer, TextTooLong

# How soon it is seen that nobody waits for an answer any more.
_POLL_S = 0.2
_LONGEST_WAIT_S = 600.0


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """One thread for each connection; the scorer is safe to be called from all."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, path: str, scorer: Scorer) -> None:
        self.scorer = scorer
        super().__init__(path, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # whoever asked has gone
            traceback.print_exc()


class _HungUp(ConnectionError):
    """Nobody waits for the answer any more."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server
    connection: socket.socket

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        scorer = self.server.scorer
        if url.path == "/health":
            self._answer(200, {"status": "ok"})
        elif url.path == "/info":
            self._answer(200, scorer.info())
        elif url.path == "/work":
            after = int(parse_qs(url.query).get("after", ["-1"])[0])
            self._answer(200, {"steps": scorer.runner.steps(after, _LONGEST_WAIT_S)})
        else:
            self._answer(404, {"error": f"there is no {url.path}"})

    def do_POST(self) -> None:
        try:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            answer = self._call(body)
        except _HungUp:
            raise
        except TextTooLong as error:
            self._answer(413, {"error": str(error)})
        except (KeyError, TypeError, ValueError) as error:
            self._answer(400, {"error": f"the request can't be read: {error!r}"})
        except Exception as error:  # the crash boundary of a request; what the network raises among it
            traceback.print_exc()
            self._answer(500, {"error": f"{type(error).__name__}: {error}"})
        else:
            self._answer(200, answer)

    def _call(self, body: dict[str, Any]) -> dict[str, Any]:
        scorer = self.server.scorer
        if self.path == "/count":
            return {"counts": [len(ids) for ids in scorer.vocabulary.ids(body["texts"])]}
        if self.path == "/ids":
            return {"ids": scorer.read(body["query"], body["text"])}
        if self.path == "/score":
            values, tokens = scorer.score(body["query"], body["texts"], self._wait_for)
            return {"values": values, "tokens": tokens}
        raise KeyError(self.path)

    def _wait_for(self, job: Job) -> None:
        """Until the job is done. Raises _HungUp where the caller has gone."""
        while not wait([job.result], _POLL_S).done:
            readable, _, _ = select.select([self.connection], [], [], 0)
            if readable and not self.connection.recv(1, socket.MSG_PEEK):
                raise _HungUp

    def _answer(self, status: int, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing: the service counts requests."""
