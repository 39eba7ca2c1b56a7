"""Check that each dependency has a wheel on platforms that no test runs on: `make wheels`.

Resolves pyproject.toml's dependencies for Linux on aarch64 and macOS on arm64 without installing them. pip
evaluates environment markers for the machine that it runs on, so this script evaluates rerankd's own for the
platform in question. Those of the dependencies stay the running machine's.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
PYTHON = "3.11"
# Markers of each platform, and the tags of wheels that pip may take there (PEP 600; glibc 2.28: Debian 10).
PLATFORMS = {
    "Linux on aarch64": (
        {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "aarch64"},
        [
            "manylinux2014_aarch64",
            "manylinux_2_17_aarch64",
            "manylinux_2_27_aarch64",
            "manylinux_2_28_aarch64",
        ],
    ),
    "macOS on arm64": (
        {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
        ["macosx_14_0_arm64"],
    ),
}


def requirements(markers: dict[str, str]) -> Iterator[str]:
    """The dependencies that rerankd has where these markers hold, without their markers."""
    here = {key: str(value) for key, value in default_environment().items()}
    python = {"python_version": PYTHON, "python_full_version": f"{PYTHON}.0", "extra": ""}
    for line in tomllib.loads(PROJECT.read_text())["project"]["dependencies"]:
        wanted = Requirement(line)
        if wanted.marker is None or wanted.marker.evaluate(here | python | markers):
            wanted.marker = None
            yield str(wanted)


def resolve(wanted: list[str], tags: list[str]) -> subprocess.CompletedProcess[str]:
    """pip's attempt to find wheels for all of them."""
    with tempfile.TemporaryDirectory() as target:
        argv = [
            sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet",
            "--only-binary", ":all:", "--python-version", PYTHON, "--target", target,
            *(f"--platform={tag}" for tag in tags), *wanted,
        ]  # fmt: skip
        return subprocess.run(argv, capture_output=True, text=True, check=False)


def main() -> int:
    """Print one line for each platform. Returns 1 if one has no wheel for a dependency."""
    failed = False
    for name, (markers, tags) in PLATFORMS.items():
        wanted = [*requirements(markers)]
        found = resolve(wanted, tags)
        failed |= found.returncode != 0
        print(
            f"{name}, Python {PYTHON}: {len(wanted)} dependencies",
            "ok" if found.returncode == 0 else "FAILED",
        )
        print("".join(f"  {line}\n" for line in found.stderr.splitlines() if "ERROR" in line), end="")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
