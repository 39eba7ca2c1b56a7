"""`rerankd logs`: show the logs of the server and of its engines, and follow them across their rotation."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from rerankd import config, server_records
from rerankd.cli.output import Config, say
from rerankd.cli.tables import printable
from rerankd.errors import UnknownModel

if TYPE_CHECKING:
    from rerankd.hub.store import Store

_LOOK_EVERY_S = 0.25
_BLOCK_BYTES = 64 * 2**10


def logs(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Only the log of this model's engines; server: only the server's.",
            show_default="the server's, and those of its engines",
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show new lines until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", help="Last lines of each log.", min=0)] = 20,
    config_file: Config = None,
) -> None:
    """Show the last lines of the logs of the server and of its engines.

    Of the engines' logs, it shows those that have changed since the server started.
    """
    from rerankd.hub.store import Store

    store = Store(config.from_machine({}, config_file).home)
    files = _chosen(store, model)
    if not files:
        raise UnknownModel(_nothing(store, model))
    shown = [Follower(path) for path in files]
    last = ""
    for one in shown:
        last = _print(one, one.last(lines), last, several=len(shown) > 1)
    while follow:
        time.sleep(_LOOK_EVERY_S)
        known = {one.path for one in shown}
        shown += [Follower(path) for path in _chosen(store, model) if path not in known]
        for one in shown:
            last = _print(one, one.new(), last, several=len(shown) > 1)


class Follower:
    """Reads a log file from where it stopped, also after the file was moved away or emptied."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None

    def last(self, count: int) -> list[str]:
        """Return the last lines, and continue after them. Raises OSError, other than for a missing file."""
        if not self._open():
            return []
        assert self._file is not None
        end = at = self._file.seek(0, os.SEEK_END)
        data = b""
        while at > 0 and data.count(b"\n") <= count:
            at = max(0, at - _BLOCK_BYTES)
            self._file.seek(at)
            data = self._file.read(end - at)
        found = _lines(data)
        return found[-count:] if count else []

    def new(self) -> list[str]:
        """Return the lines that were added, first those of a file that was moved away."""
        data = self._rest()
        if self._is_another() and self._open():
            data += self._rest()
        return _lines(data)

    def _rest(self) -> bytes:
        if self._file is None:
            return b""
        if self._file.tell() > os.fstat(self._file.fileno()).st_size:
            self._file.seek(0)  # it was emptied
        start = self._file.tell()
        whole, newline, _ = self._file.read().rpartition(b"\n")
        self._file.seek(start + len(whole) + len(newline))  # the start of a line is read again with its end
        return whole + newline

    def _is_another(self) -> bool:
        try:
            return self._file is None or not os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def _open(self) -> bool:
        try:
            opened = self.path.open("rb")
        except FileNotFoundError:
            return False
        self.close()
        self._file = opened
        return True

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _chosen(store: Store, model: str | None) -> list[Path]:
    """The log files to show: one, or the server's and those that have changed since it started."""
    servers = server_records.running(store.home)
    everything = sorted(store.logs.glob("*.log"), key=lambda path: path.stat().st_mtime)
    of_server = [Path(one.log) for one in servers] or [
        path for path in everything if path.match("server*.log")
    ][-1:]
    if model == "server":
        return of_server
    if model is not None:
        named = store.log_of(model)
        return [path for path in everything if path == named or path.stem.startswith(f"{named.stem}-")]
    since = min((one.since for one in servers), default=float("inf"))
    engines = [path for path in everything if path not in of_server and path.stat().st_mtime >= since]
    return [*of_server, *engines]


def _nothing(store: Store, model: str | None) -> str:
    names = ", ".join(sorted(path.stem for path in store.logs.glob("*.log"))) or "none"
    what = "no log" if model is None else f"no log of {model!r}"
    return f"There is {what} in {store.logs}. Logs there: {names}."


def _print(one: Follower, lines: list[str], last: str, *, several: bool) -> str:
    """Print lines, under the name of their file if the last line was of another. Returns that name."""
    if not lines:
        return last
    name = one.path.stem
    if several and name != last:
        say(f"==> {name} <==")
    for line in lines:
        typer.echo(printable(line) if sys.stdout.isatty() else line)
    sys.stdout.flush()
    return name


def _lines(data: bytes) -> list[str]:
    """The lines of a log; the last one may lack its end."""
    *whole, rest = data.split(b"\n")
    return [line.decode(errors="replace").rstrip("\r") for line in (*whole, *([rest] if rest else ()))]
