"""Become a command that cannot outlive its parent. Run as a script: `launch.py PARENT COMMAND…`.

`up` can end its children only while it lives. After a kill -9 the kernel does it: it kills a process that has called
`prctl(PR_SET_PDEATHSIG)` when the parent ends, and `exec` keeps that request. A script makes the call, because
`subprocess`'s `preexec_fn` may deadlock if the parent has threads. Only Linux has the call. Elsewhere children outlive
an `up` that was killed with -9.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Ask to be killed with the parent, then become the command."""
    parent, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        sys.exit("the parent ended before its child began")
    os.execv(command[0], command)  # noqa: S606  the purpose of this script


if __name__ == "__main__":
    main()
