"""Create the environments of the client programs: `python tests/clients/venvs.py [small|wide] …`.

Each lies in .venv-clients/NAME and is made only where it is missing or its packages in table.toml have
changed, since most of a run's time would go there otherwise.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from filelock import FileLock

HERE = Path(__file__).parent
ROOT = HERE.parent.parent / ".venv-clients"
TABLE = tomllib.loads((HERE / "table.toml").read_text(encoding="utf-8"))
_INSTALL_TIMEOUT_S = 900


def python(name: str) -> Path:
    """Return the interpreter of an environment; create it if necessary. Raises CalledProcessError."""
    with _locked(name):
        return _python(name)


def _python(name: str) -> Path:
    folder, requires = ROOT / name, TABLE["environments"][name]["requires"]
    mark, wanted = folder / "requires.txt", "\n".join([sys.version, *requires])
    program = folder / "bin" / "python"
    if not (mark.is_file() and mark.read_text(encoding="utf-8") == wanted):
        shutil.rmtree(folder, ignore_errors=True)
        _run(sys.executable, "-m", "venv", str(folder))
        _run(str(program), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requires)
        mark.write_text(wanted, encoding="utf-8")
    return program


def names(kind: str) -> list[str]:
    """Return the environments of one set, `small` or `wide`."""
    return [name for name, row in TABLE["environments"].items() if row["set"] == kind]


def node_modules() -> Path:
    """Return the folder with the packages of package.json; install them if necessary."""
    with _locked("npm"):
        return _node_modules()


def _node_modules() -> Path:
    folder, wanted = ROOT / "npm", (HERE / "package.json").read_text(encoding="utf-8")
    mark = folder / "installed.json"
    if not (mark.is_file() and mark.read_text(encoding="utf-8") == wanted):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "package.json").write_text(wanted, encoding="utf-8")
        _run("npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", cwd=folder)
        mark.write_text(wanted, encoding="utf-8")
    return folder


def _locked(name: str) -> FileLock:
    """Lock an environment while it is checked or created: other test processes need the same one."""
    ROOT.mkdir(exist_ok=True)
    return FileLock(ROOT / f"{name}.lock")


def _run(*argv: str, cwd: Path | None = None) -> None:
    subprocess.run(argv, check=True, cwd=cwd, timeout=_INSTALL_TIMEOUT_S, stdout=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=["small"], choices=["small", "wide"])
    for kind in parser.parse_args().kinds:
        for name in names(kind):
            print(f"{name}: {python(name)}", flush=True)
        if kind == "wide":
            print(f"npm: {node_modules()}", flush=True)
