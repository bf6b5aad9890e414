"""Run the service: ``python -m workers.data_loader``."""

import sys

from common.service import main
from workers.data_loader.service import DataLoader

if __name__ == "__main__":
    sys.exit(main(DataLoader))
