"""Makes tests/golden/late.json: the raw scores of late-interaction models by MultiVectorEncoder.

The models are those of tests/late.py, the texts those of tests/golden/pairs.json. Values are in float32.

    python scripts/golden_late.py            makes the file again
    python scripts/golden_late.py --check    compares the values with the file
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import MultiVectorEncoder

TESTS = Path(__file__).parent.parent / "tests"
sys.path.insert(0, str(TESTS))
import late  # noqa: E402

FILE = TESTS / "golden" / "late.json"
# Two computations of one value, in batches of other sizes, are as near as that.
NEAR = 1e-4
EACH = 60


def values(name: str, pairs: list[dict[str, Any]]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        made = late.build(name, Path(folder))
        model = MultiVectorEncoder(str(made), device="cpu", model_kwargs={"dtype": torch.float32})
        found = {}
        for pair in pairs:
            # One text at a time: some bodies of transformers compute a padded text less exactly.
            query = model.encode_query([pair["query"]])
            document = model.encode_document([pair["document"]])
            found[pair["id"]] = float((query[0] @ document[0].T).max(dim=-1).values.sum())
    return found


def main() -> int:
    flags = argparse.ArgumentParser()
    flags.add_argument("--check", action="store_true")
    checks = flags.parse_args().check
    pairs = json.loads((TESTS / "golden" / "pairs.json").read_text())
    # Evenly over all kinds of pairs; a text with white space at its ends is another one for PyLate.
    pairs = [pair for pair in pairs if pair["query"].strip() and pair["document"].strip()]
    # sentence-transformers reads the names of special tokens in a text as these tokens; rerankd never does.
    pairs = [pair for pair in pairs if not any(one in str(pair) for one in ("[CLS]", "[SEP]", "<s>", "<|"))]
    pairs = pairs[:: max(len(pairs) // EACH, 1)]
    made = {name: values(name, pairs) for name in late.NAMES}
    if not checks:
        FILE.write_text(json.dumps(made, indent=1) + "\n")
        return 0
    known = json.loads(FILE.read_text())
    gap = max(abs(known[name][one] - value) for name, rows in made.items() for one, value in rows.items())
    print(f"the largest difference is {gap:.2g}")
    return int(gap > NEAR)


if __name__ == "__main__":
    sys.exit(main())
