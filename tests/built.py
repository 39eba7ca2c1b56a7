"""Installed llama.cpp engines for tests, in the form in which a build publishes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rerankd.backends.llama import manifest
from rerankd.backends.llama.binaries import Installed

CPU = ("avx2", "fma")


def engine(build: int, backend: manifest.Backend = "cpu", instructions: tuple[str, ...] = CPU) -> Installed:
    known = manifest.Manifest(
        name=f"b{build}-{backend}-0",
        build=build,
        backend=backend,
        source="a folder",
        source_digest="0",
        flags=("-DX=ON",),
        compiler="cc 1",
        cpu="a CPU",
        instructions=instructions,
        made_at="2026-01-01T00:00:00+00:00",
        smoke="passed",
    )
    return Installed(Path(f"/engines/{known.name}/llama-server"), known)


def put(home: Path, build: int, **more: Any) -> str:
    """Install an engine in a data folder, with a shell script as its program. Returns its name."""
    known = replace(engine(build).manifest, **more)
    folder = home / "engines" / known.name
    folder.mkdir(parents=True)
    program = folder / manifest.PROGRAM
    program.write_text("#!/bin/sh\necho 'version: 0.6.0-dev (build 11434, commit x)'\n")
    program.chmod(0o755)
    (folder / manifest.FILE).write_text(manifest.render(known))
    return known.name
