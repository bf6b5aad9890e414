"""What is analysed: one package for each analysis, one module for each release."""

from common.analyses import Analyses
from physics.hzz4l import demo, release_2020e

ANALYSES = Analyses(release_2020e.ANALYSIS, demo.ANALYSIS)
