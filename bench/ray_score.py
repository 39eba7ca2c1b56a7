"""How fast `rerankd ray score` is, next to `rerankd score`, on this machine with one engine each.

    python bench/ray_score.py [MODEL] [--pairs 6000]

Needs `pip install 'rerankd[ray]'`. The pairs are those of bench/score_file.py, 50 with the same query. Prints
the pairs per second of both, without the start of Ray and of the engines, and the seconds that the commands
take as a whole.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from score_file import texts


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("model", nargs="?", default="builtin:e5")
    flags.add_argument("--pairs", type=int, default=6000)
    given = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "in.jsonl")
        pairs = texts(given.pairs, 0)
        source.write_text("".join(json.dumps({"query": q, "document": d}) + "\n" for q, d in pairs))
        for command, target in ((["score"], "out.jsonl"), (["ray", "score"], "out")):
            began = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "rerankd", *command, str(source), str(Path(folder, target)),
                 "--model", given.model, "--json"],
                stdout=subprocess.PIPE, check=True,
            )  # fmt: skip
            took = time.perf_counter() - began
            rate = given.pairs / json.loads(done.stdout)["seconds"]
            print(f"rerankd {' '.join(command)}: {rate:.1f} pairs/s; {took:.1f} s with its start", flush=True)


main()
