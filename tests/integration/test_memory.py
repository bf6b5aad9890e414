"""What is freed stays with the process, and is used again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

#: Prints how many pages the kernel handed out for thirty times eight messages of 1 MiB, in a thread.
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="says something of glibc")
def test_messages_that_come_and_go_get_the_same_pages() -> None:
    pages_at_once = 8 * 2**20 // 4096
    command = [sys.executable, "-c", PROGRAM]
    kept = int(subprocess.check_output([*command, "kept"], cwd=ROOT))
    given_back = int(subprocess.check_output([*command, "given back"], cwd=ROOT))
    assert kept < 3 * pages_at_once < 20 * pages_at_once < given_back
