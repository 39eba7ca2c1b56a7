"""Standard input, output and error: handle closed streams, full disks and non-Unicode encodings.

If the parent process closed descriptor 0, 1 or 2, the next opened file or socket gets that number, and output
for the user would be written into it.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys

from rerankd.errors import OutputFailed

# A closed standard output is opened for reading, so that writing fails with an error.
_MODES = ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY))


def prepare() -> None:
    """Open closed standard streams, and make standard output accept all characters.

    Must be called before any file is opened.
    """
    for number, mode in _MODES:
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # gets the lowest free number, which is this one
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0)), encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = io.TextIOWrapper(io.BufferedWriter(io.FileIO(2, "w")), "utf-8", "backslashreplace")
    codecs.register_error(_ESCAPED, _escaped)
    if sys.stdout is None:
        sys.stdout = _Output(io.BufferedWriter(io.FileIO(1, "w")), encoding="utf-8", errors=_ESCAPED)
    elif type(sys.stdout) is io.TextIOWrapper:
        encoding, line_buffering = sys.stdout.encoding, sys.stdout.line_buffering
        sys.stdout = _Output(
            sys.stdout.detach(), encoding=encoding, errors=_ESCAPED, line_buffering=line_buffering
        )


class _Output(io.TextIOWrapper):
    """Standard output. Raises OutputFailed if writing fails, but BrokenPipeError if the reader has exited."""

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError as error:
            raise _failed(error) from error

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise _failed(error) from error


def _failed(error: OSError) -> Exception:
    if error.errno == errno.EPIPE:
        return error
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes again at its exit
    closed = "it is closed" if error.errno == errno.EBADF else error.strerror
    return OutputFailed(f"The result can't be written to standard output: {closed}.")


_ESCAPED = "rerankd-escaped"


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Escape characters that the encoding lacks as JSON does, so that JSON output stays the same JSON."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    pairs = zip(units[::2], units[1::2], strict=True)
    return "".join(f"\\u{high:02x}{low:02x}" for high, low in pairs), error.end
