"""What is analysed: one package for each analysis, one module for each release."""

from common.releases import Releases
from physics.hzz4l import demo, release_2020e

RELEASES = Releases(release_2020e.RELEASE, demo.RELEASE)
