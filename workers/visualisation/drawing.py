"""Matplotlib is not made for threads: whoever draws holds this lock."""

import threading

ONE_AT_A_TIME = threading.Lock()
