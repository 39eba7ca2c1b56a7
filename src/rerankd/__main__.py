"""The `rerankd` command, also available as `python -m rerankd`."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command; it exits the process."""
    # The imports take up to half a second. Until they are done, Ctrl-C exits the process at once, where
    # Python would print a traceback. A shell's background job ignores SIGINT, and this does not change that.
    has_default_handler = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if has_default_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    if sys.argv[1:2] == ["serve"]:
        # A SIGHUP before the settings are read has nothing to reload, and must not end the process.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    from rerankd import standard_streams

    standard_streams.prepare()

    from rerankd import cli

    if has_default_handler:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        cli.main()
    finally:
        # Another Ctrl-C while Python exits.
        if has_default_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    main()
