#!/usr/bin/env python3
"""Run the CPU monitor of monitoring/: ``python common/cpu_monitor.py`` or ``python -m common.cpu_monitor``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from common.errors import missing_package

    try:
        from monitoring.__main__ import main
    except ModuleNotFoundError as error:
        sys.exit(f"cpu_monitor.py: {missing_package(error)}")
    sys.exit(main())
