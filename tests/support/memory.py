"""What work leaves behind in memory."""

import gc
import tracemalloc
from collections.abc import Callable


def bytes_left_by(work: Callable[[], object]) -> int:
    """Return how many more bytes are allocated after `work` than before it.

    Objects that come and go in `work` should go before the next ones come, because an emptied dict keeps its table.
    """
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
