"""The `rerankd` program, also as `python -m rerankd`."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the program; it ends the process."""
    # The imports take up to half a second. Ctrl-C then ends the process at once, where Python would print the
    # traceback of an import. In the background of a shell it is ignored, and stays so.
    is_python_s = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_python_s:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    if sys.argv[1:2] == ["serve"]:
        # A reload that comes before the settings were read has nothing to do, and must not end the process.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    from rerankd import standard_streams

    standard_streams.prepare()

    from rerankd import cli

    if is_python_s:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        cli.main()
    finally:
        # One more Ctrl-C while Python ends.
        if is_python_s:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    main()
