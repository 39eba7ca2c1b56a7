"""Size and first contentful paint of the status page: `python bench/page.py`. Requires Chromium."""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from browser import chromium
from support import GOLDEN, ROOT, start_serving

_PAINT = "performance.getEntriesByName('first-contentful-paint')"
_LOADED = (
    "[...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')]"
    ".filter(entry => !entry.name.includes('/v1/')).reduce((sum, entry) => sum + entry.encodedBodySize, 0)"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    rounds = parser.parse_args().rounds
    server = start_serving(ROOT / ".test-home", str(GOLDEN / "xlmr-head.gguf"))
    paints, loaded = [], 0
    try:
        with chromium() as browser:
            for _ in range(rounds + 1):  # the first one starts parts of the browser and is not counted
                context = browser.new_context()
                page = context.new_page()
                page.goto(f"{server.url}/")
                page.locator("#served .dot").wait_for()
                page.wait_for_function(f"{_PAINT}.length")
                paints.append(page.evaluate(f"{_PAINT}[0].startTime"))
                loaded = page.evaluate(_LOADED)
                context.close()
    finally:
        server.stop()
    print(f"first paint: {statistics.median(paints[1:]):.0f} ms (median of {rounds})")
    print(f"slowest: {max(paints[1:]):.0f} ms")
    print(f"loaded: {loaded / 1000:.1f} kB")


if __name__ == "__main__":
    main()
