"""The web page of a run within one process, which the command serves with ``--page``."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import requests

from tests.support.paths import ROOT
from tests.support.waiting import wait_until


def test_the_command_serves_the_page_of_its_run_until_it_is_interrupted(tmp_path: Path, cache: Path) -> None:
    flags = ["--release", "demo", "--demo-events", "5000", "--no-plots", "--page"]
    command = [sys.executable, str(ROOT / "analysis.py"), *flags, "--output", str(tmp_path / "results")]
    environment = os.environ | {"CACHE": str(cache)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = next(found[0] for line in process.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+/", line)))
        assert requests.get(address, timeout=30, headers={"Host": "elsewhere.example"}).status_code == 400

        def is_complete() -> bool:
            return 'class="badge complete"' in requests.get(address, timeout=30).text

        wait_until(is_complete, "the page listed the finished run", 60)
        (folder,) = (tmp_path / "results").iterdir()
        for part in ("", "/timeline", "/files"):
            assert requests.get(f"{address}runs/{folder.name}{part}", timeout=30).status_code == 200
        pipeline = requests.get(f"{address}pipeline", timeout=30).text
        assert "All services share one process" in pipeline
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 0
