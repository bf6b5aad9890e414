"""A program for containers and pods that uses a known number of CPU seconds."""

IMAGE = "python:3.13-slim"

#: Uses as many CPU seconds as its first argument says. ``used()`` returns the exact number, from getrusage.
CPU_LOAD = """
import os, resource, sys, time
def used():
    r = resource.getrusage(resource.RUSAGE_SELF)
    return r.ru_utime + r.ru_stime
while used() < float(sys.argv[1]):
    sum(range(10000))
"""
