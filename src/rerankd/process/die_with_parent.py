"""Run a program so that it dies with the process that started it, even when that one is killed outright.

    python -I -S die_with_parent.py PARENT_PID PROGRAM [ARGUMENT...]

On Linux the kernel sends SIGKILL when the parent's thread ends (PR_SET_PDEATHSIG survives exec). Elsewhere
the program simply runs. This file is run as a script and imports only what it needs: it costs each start
about 15 ms.
"""

import os
import sys

_PR_SET_PDEATHSIG = 1
_SIGKILL = 9


def main(parent: int, command: list[str]) -> None:
    """Replace this process by `command`; return only where the parent is already gone."""
    if sys.platform == "linux":
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
        # The parent may have died before prctl took effect. Its pid, not 1, is compared: in a container the
        # service itself may be process 1.
        if os.getppid() != parent:
            return
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
