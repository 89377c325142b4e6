"""What a process sets before it serves, in a process of its own."""

import json
import subprocess
import sys

CODE = """
import gc, json
from protocol.runtime.process.tuning import tune_garbage_collector
tune_garbage_collector()
print(json.dumps([*gc.get_threshold(), gc.get_freeze_count() > 0]))
"""
MAX_MIDDLE_OBJECTS = 30_000  # a collection of so many that all stay takes 7 ms


def test_no_collection_but_the_rare_full_one_holds_the_loop_for_long() -> None:
    told = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=60).stdout
    young, middle, full, is_frozen = json.loads(told)
    assert young * (middle + 1) <= MAX_MIDDLE_OBJECTS
    assert young * (middle + 1) * full >= 50_000_000
    assert is_frozen
