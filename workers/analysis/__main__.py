"""Run the service: ``python -m workers.analysis``."""

import sys

from workers.analysis.service import AnalysisService
from workers.process import main

if __name__ == "__main__":
    sys.exit(main(AnalysisService))
