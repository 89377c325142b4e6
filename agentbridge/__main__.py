"""The `agentbridge` command: handles signals first, then imports everything else, which takes a third of a second."""

import signal
import sys

from agentbridge import PROCESSES
from protocol.runtime.process import early_signals


def main() -> None:
    """Run the command line."""
    former, serves = signal.getsignal(signal.SIGINT), sys.argv[1:2] and sys.argv[1] in PROCESSES
    if serves:
        early_signals.end_at_once()
    elif former is not signal.SIG_IGN:  # as it is behind `&` in a script
        early_signals.end_at_once(early_signals.EXIT_INTERRUPTED, (signal.SIGINT,))
    from agentbridge import command_line

    if not serves:
        signal.signal(signal.SIGINT, former)
    command_line.main()


if __name__ == "__main__":
    main()
