"""What is analysed: one package for each analysis, one module for each release; ``files`` loads own analyses."""

from physics.files import PhysicsAnalyses
from physics.hzz4l import demo, demo_2025, release_2020e, release_2025e

ANALYSES = PhysicsAnalyses(release_2020e.ANALYSIS, release_2025e.ANALYSIS, demo.ANALYSIS, demo_2025.ANALYSIS)
