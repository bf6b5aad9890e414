"""Run the service: ``python -m workers.analysis``."""

import sys

from common.service import main
from workers.analysis.service import Analysis

if __name__ == "__main__":
    sys.exit(main(Analysis))
