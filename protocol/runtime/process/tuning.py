"""Settings of the operating system and of Python that a process makes before it serves."""

import gc
import resource


def raise_open_file_limit() -> None:
    """Raise the soft limit to the hard one, because each connection is a file and the soft limit is often 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def tune_garbage_collector() -> None:
    """Exclude the objects of the start from every collection, and collect less often. p99 fell from 45 to 7 ms.

    The middle generation is collected early, after 2 young ones. After 50 it had grown to half a million objects while
    clients connected, and a command waited 235 ms for its collection. After 5 a collection took 11 to 22 ms while an
    agent API read 200,000 tools, after 2 it takes half of that, and no more time in all.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 2, 2_000)
