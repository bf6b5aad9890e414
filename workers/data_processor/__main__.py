"""Run the service: ``python -m workers.data_processor``."""

import sys

from common.service import main
from workers.data_processor.service import DataProcessor

if __name__ == "__main__":
    sys.exit(main(DataProcessor))
