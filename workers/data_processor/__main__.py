"""Run the service: ``python -m workers.data_processor``."""

import sys

from workers.data_processor.service import DataProcessor
from workers.process import main

if __name__ == "__main__":
    sys.exit(main(DataProcessor))
