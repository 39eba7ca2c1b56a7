"""Run programs under bubblewrap with most of the restrictions of a container or a systemd unit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from support import ROOT

# All files are read-only, and the user has no entry in /etc/passwd.
_ANYONE = ("--ro-bind", "/", "/", "--proc", "/proc", "--unshare-user", "--uid", "64999", "--gid", "64999")
_DEVICES = ("null", "zero", "full", "random", "urandom")
# prctl(2) with PR_SET_MDWE, which systemd uses for MemoryDenyWriteExecute (Linux 6.3).
_DENY_WRITE_EXECUTE = (
    "import ctypes, os, sys; libc = ctypes.CDLL(None, use_errno=True); "
    "libc.prctl(65, 1, 0, 0, 0) and sys.exit(f'PR_SET_MDWE: {os.strerror(ctypes.get_errno())}'); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)
# The unit's restrictions that `unit` applies (some in _ANYONE), and those that need systemd or seccomp.
APPLIED = {
    *("AmbientCapabilities", "CapabilityBoundingSet", "MemoryDenyWriteExecute", "NoNewPrivileges"),
    *("PrivateDevices", "PrivateTmp", "PrivateUsers", "ProtectHome", "ProtectHostname", "ProtectSystem"),
    *("RuntimeDirectory", "StateDirectory", "UMask", "User"),
}
NOT_APPLIED = {
    *("LockPersonality", "ProtectClock", "ProtectControlGroups", "ProtectKernelLogs", "ProtectKernelModules"),
    *("ProtectKernelTunables", "ProtectProc", "RemoveIPC", "RestrictAddressFamilies", "RestrictNamespaces"),
    *("RestrictRealtime", "RestrictSUIDSGID", "RuntimeDirectoryMode", "StateDirectoryMode"),
    *("SystemCallArchitectures", "SystemCallErrorNumber", "SystemCallFilter"),
}


def bubble(*options: str) -> list[str]:
    """The command line prefix that runs a program in a sandbox. Skips the test without bubblewrap."""
    if reason := _reason():
        pytest.skip(reason)
    return ["bwrap", *_ANYONE, "--die-with-parent", *options]


@cache
def _reason() -> str:
    if shutil.which("bwrap") is None:
        return "this test needs bubblewrap: apt install bubblewrap"
    done = subprocess.run(["bwrap", *_ANYONE, "true"], capture_output=True, text=True)
    return f"bubblewrap does not work here: {done.stderr.strip()}" if done.returncode else ""


def container(home: Path) -> list[str]:
    """Like a container: a private /tmp, a read-only data folder, no HOME, no /dev/shm."""
    devices = [word for name in _DEVICES for word in ("--dev-bind", f"/dev/{name}", f"/dev/{name}")]
    return bubble("--tmpfs", "/dev", *devices, "--tmpfs", "/tmp", *seen(home), "--unsetenv", "HOME")


def unit(text: str, state: Path, runtime: Path) -> list[str]:
    """Like a systemd unit with this text, with its StateDirectory and RuntimeDirectory."""
    words = bubble("--dev", "/dev", "--unshare-uts", "--cap-drop", "ALL", "--chdir", str(state))
    for hidden in ("/home", "/root", "/run/user", "/tmp", "/var/tmp"):
        words += ["--tmpfs", hidden] if Path(hidden).is_dir() else []
    words += seen()
    words += [word for folder in (state, runtime) for word in ("--bind", str(folder), str(folder))]
    words += ["sh", "-c", 'umask 0077; exec "$@"', "sh"]
    if re.search(r"^MemoryDenyWriteExecute=(yes|true|on|1)$", text, re.MULTILINE):
        words += [sys.executable, "-c", _DENY_WRITE_EXECUTE]
    return words


def pod(spec: Mapping[str, Any], volumes: Mapping[str, Path]) -> list[str]:
    """Like the first container of a pod: the user, the read-only root and the mounts of this pod spec.

    `volumes` has a folder for the name of each volume that is not an emptyDir.
    """
    (container, *_), user = spec["containers"], spec["securityContext"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    identity = ("--unshare-user", "--uid", str(user["runAsUser"]), "--gid", str(user["runAsGroup"]))
    empty = {one["name"] for one in spec["volumes"] if "emptyDir" in one}
    mounts = {Path(one["mountPath"]): one for one in container["volumeMounts"]}
    words: list[str] = []
    for path, mount in mounts.items():
        if mount["name"] in empty:
            words += ["--tmpfs", str(path)]
        else:
            how = "--ro-bind" if mount.get("readOnly") else "--bind"
            words += [how, str(volumes[mount["name"]]), str(path)]
    hidden = [word for name in _DEVICES for word in ("--dev-bind", f"/dev/{name}", f"/dev/{name}")]
    root = [*_root_around(mounts), "--dir", "/dev", *hidden, "--proc", "/proc", *words, *seen()]
    return bubble(*identity, "--cap-drop", "ALL", *root, "--remount-ro", "/", "--chdir", "/")


def _root_around(mounts: Iterable[Path]) -> list[str]:
    """Bind what is in / into an empty root, one by one where a mount point has to be made beside it."""
    inside = {parent for mount in mounts for parent in mount.parents}
    left_out = {*mounts, Path("/proc"), Path("/dev"), Path("/sys")}
    words = ["--tmpfs", "/"]
    for folder in sorted(inside):
        words += ["--dir", str(folder)]
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.is_symlink():
                words += ["--symlink", os.readlink(path), str(path)]
            elif path not in left_out and path not in inside:
                words += ["--ro-bind", str(path), str(path)]
    return words


def seen(*more: Path) -> Sequence[str]:
    """Bind this project and its Python, which may be in /home, /root or /tmp, into the sandbox."""
    folders = (ROOT, Path(sys.prefix), Path(sys.base_prefix), *more)
    hidden = [path for path in folders if path.is_relative_to("/home") or path.is_relative_to("/root")]
    hidden += [path for path in folders if path.is_relative_to("/tmp")]
    return [word for path in hidden for word in ("--ro-bind", str(path), str(path))]
