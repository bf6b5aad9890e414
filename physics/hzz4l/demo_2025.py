"""The toy release: the samples and numbers of 2025e-13tev-beta, with events that are made on this machine."""

from __future__ import annotations

from dataclasses import replace

from physics.hzz4l import release_2025e
from physics.hzz4l.demo import maker

_TOY = replace(release_2025e.ANALYSIS, release="demo-2025", title="TOY demo 2025", record_urls=())
ANALYSIS = replace(_TOY, toy=True, make_file=maker(_TOY))
