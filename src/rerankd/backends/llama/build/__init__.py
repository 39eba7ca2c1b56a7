"""llama.cpp from source, for this machine: `rerankd engine build`.

What is built, and how, is decided by pure functions (plan.py); the acts are apart: where the source comes
from (source.py), what compiles it (tools.py, cuda.py), the programs that run (run.py), the smoke test
(smoke.py) on a tiny model (tiny.py), and the story from beginning to end (builder.py).
"""
