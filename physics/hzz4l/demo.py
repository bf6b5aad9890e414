"""The toy release: the samples and numbers of 2020e-13tev, with events that are made on this machine."""

from dataclasses import replace

from physics.hzz4l import release_2020e

RELEASE = replace(release_2020e.RELEASE, name="demo", title="TOY demo", toy=True, record_urls=(), other_urls=())
