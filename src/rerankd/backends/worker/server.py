"""The HTTP server of a worker, on a UNIX socket.

    GET  /health            200, at any time, because it listens only after the model is loaded
    GET  /work?after=N      {"steps": n}, as soon as more than N passes were computed or none is running
    GET  /info              {"about"}
    POST /score             {"values", "kept", "vectors", "errors"}: the raw score of each input of the batch
                            (see protocol.py), in order; what the engine keeps (see token_vectors.py),
                            or null; the vectors of a block, or null; by index why an input has no score.
                            /score?anew neither uses the kept documents nor adds to them
    POST /embed             the vector of each input, in order, as float32, little-endian (see protocol.py)

An error is {"error": message}: 413 for an input longer than max_length, 400 for an invalid body, and 500 for
anything else. The computation for a caller stops when it disconnects.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import socketserver
import sys
import traceback
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from rerankd.backends.worker import protocol
from rerankd.backends.worker.images import spread
from rerankd.backends.worker.scorer import Scorer
from rerankd.errors import InputTooLong

_LONGEST_WAIT_S = 600.0


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Serves each connection in its own thread; the scorer is thread-safe."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, path: str, scorer: Scorer) -> None:
        self.scorer = scorer
        super().__init__(path, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a ConnectionError: the caller disconnected
            traceback.print_exc()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # buffered, so that headers and body are sent together
    server: Server
    connection: socket.socket

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        scorer = self.server.scorer
        if url.path == "/health":
            self._answer(200, {"status": "ok"})
        elif url.path == "/info":
            self._answer(200, {"about": scorer.about})
        elif url.path == "/work":
            after = int(parse_qs(url.query).get("after", ["-1"])[0])
            self._answer(200, {"steps": scorer.lock.steps(after, _LONGEST_WAIT_S)})
        else:
            self._answer(404, {"error": f"{url.path} does not exist"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        url = urlsplit(self.path)
        if url.path not in ("/score", "/embed"):
            self._answer(404, {"error": f"{self.path} does not exist"})
            return
        scorer = self.server.scorer
        try:
            inputs, errors = protocol.parse(body), dict[int, str]()
            if url.path == "/embed":
                vectors = scorer.embed(inputs, self._check)
                self._send(200, protocol.render_embeddings(vectors), protocol.BINARY)
                return
            if (images := scorer.images) is not None:
                inputs, errors = images.decoded(inputs)
            values, rows = scorer.answer(inputs, self._check, anew=url.query == "anew")
        except ConnectionError:
            raise
        except InputTooLong as error:
            self._answer(413, {"error": error.message})
        except protocol.InvalidBatch as error:
            self._answer(400, {"error": f"the batch is invalid: {error}"})
        except protocol.DeviceLost as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            os._exit(1)  # from any thread; the supervisor starts a new process
        except Exception as error:  # the crash boundary of a request, for errors of the network, too
            traceback.print_exc()
            self._answer(500, {"error": f"{type(error).__name__}: {error}"})
        else:
            kept = scorer.kept
            block = protocol.render_vectors(rows) if rows is not None else None
            answer = {"values": spread(values, errors), "kept": kept and asdict(kept), "vectors": block}
            self._answer(200, {**answer, "errors": errors})

    def _check(self) -> None:
        """Raise ConnectionError if the caller has disconnected."""
        with contextlib.suppress(BlockingIOError):
            if not self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                raise ConnectionAbortedError("the caller has disconnected")

    def _answer(self, status: int, value: dict[str, Any]) -> None:
        self._send(status, json.dumps(value).encode(), "application/json")

    def _send(self, status: int, data: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Log nothing: the service counts requests."""
