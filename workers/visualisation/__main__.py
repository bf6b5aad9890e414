"""Run the service: ``python -m workers.visualisation``."""

import sys

from workers.process import main
from workers.visualisation.service import Visualisation

if __name__ == "__main__":
    sys.exit(main(Visualisation))
