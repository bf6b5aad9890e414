"""The toy release: the samples and numbers of 2020e-13tev, with events that are made on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from common.analyses import Analysis, Sample
from physics.hzz4l import release_2020e


def maker(toy: Analysis) -> Callable[..., Path]:
    """Return the function that writes the files of a toy release.

    An analysis that is derived from this one reads the same files, whichever samples it has. Those with all
    branches are written for one that reads others.
    """

    def make_file(analysis: Analysis, sample: Sample, events: int, directory: Path, *, write: bool = True) -> Path:
        """Return the path of a sample's toy file in the directory; with ``write``, it is written if it is not there."""
        from physics.hzz4l.toy.files import demo_file  # imported when it is needed: it takes time

        others = not analysis.branches.keys() <= toy.branches.keys()
        return demo_file(toy.sample(sample.name), toy, events, directory, all_branches=others, write=write)

    return make_file


_TOY = replace(release_2020e.ANALYSIS, release="demo", title="TOY demo", record_urls=(), other_urls=())
ANALYSIS = replace(_TOY, toy=True, make_file=maker(_TOY))
