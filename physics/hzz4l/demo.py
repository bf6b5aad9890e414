"""The toy release: the samples and numbers of 2020e-13tev, with events that are made on this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from common.analyses import Analysis, Sample
from physics.hzz4l import release_2020e


def make_file(analysis: Analysis, sample: Sample, events: int, directory: Path) -> Path:
    """Return the path of a sample's toy file in the directory, which is written if it does not exist."""
    from physics.hzz4l.toy.files import demo_file  # imported when it is needed: it takes time

    return demo_file(sample, analysis, events, directory)


ANALYSIS = replace(
    release_2020e.ANALYSIS,
    release="demo",
    title="TOY demo",
    toy=True,
    record_urls=(),
    other_urls=(),
    make_file=make_file,
)
