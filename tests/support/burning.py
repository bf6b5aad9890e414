"""A program for containers and pods that uses a known number of CPU seconds."""

IMAGE = "python:3.13-slim"

#: Uses so many CPU seconds; ``used()`` says how many those were, by getrusage. What comes then is appended.
BURN = """
import os, resource, sys, time
def used():
    r = resource.getrusage(resource.RUSAGE_SELF)
    return r.ru_utime + r.ru_stime
while used() < float(sys.argv[1]):
    sum(range(10000))
"""
