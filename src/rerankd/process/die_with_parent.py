"""Run a program so that it dies with its parent process, even if the parent is killed by SIGKILL.

    python -I -S die_with_parent.py PARENT_PID PROGRAM [ARGUMENT...]

On Linux the kernel sends SIGKILL when the parent's thread ends (PR_SET_PDEATHSIG survives exec). On other
systems the program just runs. This file runs as a script and has few imports: it adds about 15 ms to each
start.
"""

import os
import sys

_PR_SET_PDEATHSIG = 1
_SIGKILL = 9


def main(parent: int, command: list[str]) -> None:
    """Replace this process by `command`; return only if the parent has already exited."""
    if sys.platform == "linux":
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
        # The parent may have died before prctl took effect. Compare with the parent's pid, not with 1: in a
        # container the service itself may be process 1.
        if os.getppid() != parent:
            return
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
