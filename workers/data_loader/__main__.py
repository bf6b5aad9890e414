"""Run the service: ``python -m workers.data_loader``."""

import sys

from workers.data_loader.service import DataLoader
from workers.process import main

if __name__ == "__main__":
    sys.exit(main(DataLoader))
