"""Start and stop the `rerankd serve` that a benchmark measures."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from rerankd.errors import EngineStartFailed
from rerankd.process.child import Child

_SERVES = re.compile(r"\bserves \S.* at (http://\S+)$")
_LOOK_S = 0.05
_STOP_S = 20.0


@contextlib.asynccontextmanager
async def running(
    arguments: Sequence[str], environ: Mapping[str, str], log: Path, within_s: float
) -> AsyncIterator[tuple[str, float]]:
    """Run `rerankd serve` with these arguments on a free port. Yields its URL and the seconds until it
    served.

    Raises EngineStartFailed with its last log lines if it exits, or does not serve within `within_s` seconds.
    """
    started = time.perf_counter()
    argv = (sys.executable, "-P", "-m", "rerankd", "serve", *arguments, "--port", "0")
    child = await Child.start(argv, log, environ)
    try:
        while (url := _address(child.lines())) is None:
            took = time.perf_counter() - started
            ended = child.exit_code is not None
            if ended or took > within_s:
                what = "exited during startup" if ended else f"was not ready after {took:.0f} s"
                last = "\n".join(f"  {line}" for line in child.lines()[-12:])
                raise EngineStartFailed(f"The service to measure {what}. Its last log lines:\n{last}")
            await asyncio.sleep(_LOOK_S)
        yield url, time.perf_counter() - started
    finally:
        await child.stop(_STOP_S)


def _address(lines: Sequence[str]) -> str | None:
    found = (_SERVES.search(line) for line in lines)
    return next((match[1].replace("localhost", "127.0.0.1") for match in found if match), None)
