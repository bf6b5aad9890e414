"""A process with ``keep_freed_memory`` reuses the memory that it frees."""

from __future__ import annotations

import mmap
import platform
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

#: Allocates and frees eight messages of 1 MiB thirty times in a thread, and prints the number of page faults.
PROGRAM = """
import resource, sys, threading
from common.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def work():
    for _ in range(30):
        [b"x" * 2**20 for _ in range(8)]
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_new_messages_reuse_the_pages_of_freed_ones() -> None:
    pages_of_eight = 8 * 2**20 // mmap.PAGESIZE
    command = [sys.executable, "-c", PROGRAM]
    kept = int(subprocess.check_output([*command, "kept"], cwd=ROOT))
    given_back = int(subprocess.check_output([*command, "given back"], cwd=ROOT))
    assert kept < 3 * pages_of_eight < 20 * pages_of_eight < given_back
