"""Run every command with values that break programs, many in one process: each case in a fork of it.

As a program, it reads cases (JSON, one a line) from standard input and writes their results. A fork takes
milliseconds where a start of Python and its imports take half a second.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from typer.main import get_command

from rerankd import __main__, cli
from support import GOLDEN

# What a user or a script may send by accident. A new process can't have a NUL in its arguments, a fork can.
NASTY = (
    "",
    " ",
    "\0",
    "a\0b",
    "\udcff",
    "a\tb",
    "a\nb",
    "\x1b[31m",
    "a.b..c",
    "..",
    "~nobody/x",
    "/dev/null/x",
    "/proc/self/mem",
    "/",
    "-1",
    "99999999999999999999",
    "nan",
    "1e999",
    "x" * 5000,
    "http://[",
    "http://a\tb:99999",
    "hf:",
    "hf:a/b/c\udcff",
    "ms:../..",
    "builtin:",
    "{}",
    "٣",
)
STREAMS = ("pipe", "closed", "full", "broken", "stdin closed", "stderr closed", "all closed")
CODES = {*range(8), 130}


@dataclass(frozen=True, slots=True)
class Case:
    """One run of the program: arguments, changes of the environment (None removes a variable), the state of
    the standard streams, and what is on standard input."""

    argv: tuple[str, ...]
    environ: Mapping[str, str | None] = field(default_factory=dict)
    streams: str = "pipe"
    stdin: str = ""


def commands() -> dict[tuple[str, ...], Any]:
    """Every command of the program, by its words."""
    found: dict[tuple[str, ...], Any] = {}

    def walk(words: tuple[str, ...], command: Any) -> None:
        found[words] = command
        for name, inner in getattr(command, "commands", {}).items():
            walk((*words, name), inner)

    walk((), get_command(cli.app))
    return found


def cases(folder: Path) -> Iterator[Case]:
    """Each command as it is, with each nasty value in each parameter, and in each broken environment."""
    good = _good_values(folder)
    for words, command in commands().items():
        needed = [value for one in command.params if one.required for value in _given(one, good(one))]
        for streams in STREAMS:
            yield Case((*words, *needed), streams=streams)
            yield Case((*words, "--help"), streams=streams)
        for environ in _environments(folder):
            yield Case((*words, *needed), environ)
        for one in command.params:
            if one.name in ("help", "version"):
                continue
            others = [
                value
                for other in command.params
                if other.required and other is not one
                for value in _given(other, good(other))
            ]
            files = tuple(map(str, folder.glob("*.gguf"))) if "model" in one.name else ()
            for value in ("",) if getattr(one, "is_flag", False) else NASTY + files:
                yield Case((*words, *others, *_given(one, value)), stdin=value)


def prepare(folder: Path) -> None:
    """Write the files that the cases name: pairs, and models with names that are hard to print."""
    (folder / "pairs.jsonl").write_text('{"query": "a", "document": "b", "raw": 1}\n')
    for name in ("m\udcff", "m\tm", "m\nm", "m\x1b[31m", "m[red]", "m'\"$(x)", " ", "-m"):
        shutil.copy(GOLDEN / "xlmr-head.gguf", folder / f"{name}.gguf")
        shutil.copy(GOLDEN / "qwen2-labels.gguf", folder / f"{name}-refused.gguf")


def _good_values(folder: Path) -> Any:
    def good(parameter: Any) -> str:
        return {"pairs": str(folder / "pairs.jsonl"), "shell": "bash"}.get(parameter.name, "missing")

    return good


def _given(parameter: Any, value: str) -> list[str]:
    if parameter.param_type_name == "argument":
        return [value]
    name = str(parameter.opts[0])
    return [name] if parameter.is_flag else [name, value]


def _environments(folder: Path) -> Iterator[dict[str, str | None]]:
    yield {"HOME": None, "RERANKD_HOME": None, "XDG_DATA_HOME": None}
    yield {"RERANKD_HOME": "/proc/none"}
    yield {"RERANKD_HOME": "/dev/null"}
    yield {"RERANKD_HOME": "a\tb\udcff"}
    yield {"HOME": "\udcff", "RERANKD_HOME": None}
    yield {"RERANKD_HOST": "a..b"}
    yield {"RERANKD_HOST": "\udcff\t"}
    yield {"RERANKD_API_KEY": "\udcff"}
    yield {"RERANKD_API_KEY": "ключ"}
    yield {"RERANKD_MODEL": "a\tb\udcff"}
    yield {"RERANKD_API_KEYS_FILE": "/proc/self/mem"}
    yield {"LLAMA_PATH": "\udcff"}
    yield {"TMPDIR": "/none", "XDG_RUNTIME_DIR": "/none"}
    yield {"COLUMNS": "1"}
    yield {"COLUMNS": "x", "TERM": "\udcff"}
    yield {"PATH": None, "LANG": "C", "PYTHONIOENCODING": "ascii:strict"}
    yield {"ALL_PROXY": "nonsense://x", "HTTPS_PROXY": "http://[", "HF_ENDPOINT": "not a url\t"}
    yield {"_RERANKD_COMPLETE": "complete_fish", "_TYPER_COMPLETE_ARGS": "rerankd pull '\udcff"}


def run(case: Case, timeout_s: float) -> dict[str, Any]:
    """Run a case in a fork; returns its exit code (None if it was killed after `timeout_s`) and output."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        _become(case, read, write)
    os.close(write)
    output, code = b"", None
    end = time.monotonic() + timeout_s
    while (left := end - time.monotonic()) > 0 and len(output) < 2**20:
        if select.select([read], [], [], left)[0]:
            if not (chunk := os.read(read, 65536)):
                break
            output += chunk
    while time.monotonic() < end and (status := os.waitpid(pid, os.WNOHANG))[0] == 0:
        select.select([], [], [], 0.005)
    else:
        code = os.waitstatus_to_exitcode(status[1]) if time.monotonic() < end else None
    with contextlib.suppress(ProcessLookupError, PermissionError, ChildProcessError):
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    os.close(read)
    return {"code": code, "output": output.decode(errors="replace")}


def _become(case: Case, read: int, write: int) -> None:
    """In the fork: run the program, and exit."""
    os.setsid()
    os.close(read)
    null, full = os.open(os.devnull, os.O_RDWR), os.open("/dev/full", os.O_WRONLY)
    broken_read, broken = os.pipe()
    os.close(broken_read)
    stdin_read, stdin_write = os.pipe()
    os.write(stdin_write, case.stdin.encode("utf-8", "surrogatepass")[:60000])
    os.close(stdin_write)
    out = {"full": full, "broken": broken}.get(case.streams, write)
    os.dup2(stdin_read, 0)
    os.dup2(out, 1)
    os.dup2(write, 2)
    for one in {null, full, broken, stdin_read, write}:
        os.close(one)
    closed = {"closed": (1,), "stdin closed": (0,), "stderr closed": (2,), "all closed": (0, 1, 2)}
    streams = [
        None if number in closed.get(case.streams, ()) else io.TextIOWrapper(io.open(number, mode), **options)  # noqa: SIM115, UP020
        for number, mode, options in (
            (0, "rb", {"encoding": "utf-8", "errors": "surrogateescape"}),
            (1, "wb", {"encoding": "utf-8", "errors": "strict"}),
            (2, "wb", {"encoding": "utf-8", "errors": "backslashreplace", "write_through": True}),
        )
    ]
    for number in closed.get(case.streams, ()):
        os.close(number)
    sys.stdin, sys.stdout, sys.stderr = streams
    for name, value in case.environ.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    sys.argv = ["rerankd", *case.argv]
    code = 70
    try:
        __main__.main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                if stream is not None:
                    stream.flush()
        os._exit(code)


def faults(case: Case, result: Mapping[str, Any]) -> list[str]:
    """What is wrong with a result."""
    code, output = result["code"], result["output"]
    found = [] if code is None or code in CODES else [f"exit code {code}"]
    found += [word for word in ("Traceback (most", "Exception ignored", "Error in sys.") if word in output]
    silent = (
        "stderr closed",
        "all closed",
        "broken",
    )  # nobody reads: the shell's convention is to say nothing
    if code not in (None, 0, 130) and not output.strip() and case.streams not in silent:
        found.append("says nothing")
    return found


def main() -> None:
    """Run the cases of standard input."""
    timeout_s = float(sys.argv[1])
    for line in sys.stdin:
        case = Case(**json.loads(line))
        result = run(case, timeout_s)
        found = faults(case, result)
        print(json.dumps({"case": asdict(case), "faults": found, **result}), flush=True)


def as_lines(chosen: Sequence[Case]) -> str:
    """The cases as `main` reads them."""
    return "".join(json.dumps(asdict(case)) + "\n" for case in chosen)


if __name__ == "__main__":
    main()
