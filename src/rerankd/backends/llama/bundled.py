"""The bundled llama.cpp server, from the xllamacpp wheel: `python -m rerankd.backends.llama.bundled`.

It accepts the llama-server flags that rerankd uses, and serves the same HTTP API on a UNIX socket, so one
client works with both.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from typing import Any


def parser() -> argparse.ArgumentParser:
    """Return the argument parser, with llama-server's flag names."""
    flags = argparse.ArgumentParser(prog="rerankd.backends.llama.bundled", allow_abbrev=False)
    flags.add_argument("--model", required=True)
    flags.add_argument("--host", required=True, help="path of the UNIX socket")
    flags.add_argument("--alias", default="")
    flags.add_argument("--ctx-size", type=int, required=True)
    flags.add_argument("--batch-size", type=int, required=True)
    flags.add_argument("--ubatch-size", type=int, required=True)
    flags.add_argument("--parallel", type=int, required=True)
    flags.add_argument("--threads", type=int, required=True)
    flags.add_argument("--threads-http", type=int, default=4)
    flags.add_argument("--n-gpu-layers", type=int, default=-1)
    flags.add_argument("--cache-ram", type=int, default=0)
    flags.add_argument("--flash-attn", choices=["on", "off", "auto"], default="auto")
    flags.add_argument("--cache-type-k", default="f16", choices=["f16", "f32"])
    flags.add_argument("--cache-type-v", default="f16", choices=["f16", "f32"])
    flags.add_argument("--embedding", action="store_true")
    flags.add_argument("--pooling", choices=["none", "mean", "cls", "last", "rank"])
    flags.add_argument("--no-cache-idle-slots", action="store_true")
    flags.add_argument("--no-repack", action="store_true")
    flags.add_argument("--no-webui", action="store_true")
    return flags


def params(options: argparse.Namespace) -> Any:
    """Convert the flags to xllamacpp's CommonParams."""
    llama = importlib.import_module("xllamacpp")
    p = llama.CommonParams()
    p.model.path = options.model
    p.model_alias = [options.alias] if options.alias else []
    p.hostnames = [options.host]
    p.n_ctx = options.ctx_size
    p.n_batch = options.batch_size
    p.n_ubatch = options.ubatch_size
    p.n_parallel = options.parallel
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = options.threads
    p.n_threads_http = options.threads_http
    p.n_gpu_layers = options.n_gpu_layers
    p.no_extra_bufts = options.no_repack
    p.cache_ram_mib = options.cache_ram
    p.cache_idle_slots = not options.no_cache_idle_slots
    flash = llama.llama_flash_attn_type
    p.flash_attn_type = {
        "on": flash.LLAMA_FLASH_ATTN_TYPE_ENABLED,
        "off": flash.LLAMA_FLASH_ATTN_TYPE_DISABLED,
        "auto": flash.LLAMA_FLASH_ATTN_TYPE_AUTO,
    }[options.flash_attn]
    kinds = {"f16": llama.ggml_type.GGML_TYPE_F16, "f32": llama.ggml_type.GGML_TYPE_F32}
    p.cache_type_k, p.cache_type_v = kinds[options.cache_type_k], kinds[options.cache_type_v]
    p.embedding = options.embedding
    if options.pooling:
        p.pooling_type = getattr(llama.llama_pooling_type, f"LLAMA_POOLING_TYPE_{options.pooling.upper()}")
    p.ui = not options.no_webui
    return p


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal ends the process. Returns 1 if the model does not load."""
    # llama.cpp needs no cleanup. The default action ends the process at once, even while a model loads.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    options = parser().parse_args(arguments)
    llama = importlib.import_module("xllamacpp")  # untyped, and 100 MB: only this program loads it
    try:
        server = llama.Server(params(options))
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    print(f"listening on {server.listening_address}", file=sys.stderr, flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    sys.exit(main())
