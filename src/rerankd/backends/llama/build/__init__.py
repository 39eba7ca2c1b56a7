"""Build llama.cpp from source for this machine: `rerankd engine build`.

builder.py runs the whole build. plan.py (pure) decides what is built and how. source.py gets the source,
tools.py and cuda.py find the compilers, run.py runs programs, and smoke.py tests the result with a tiny model
(tiny.py).
"""
