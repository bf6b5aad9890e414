"""Secrets of an address stay with the data-loader, and a result says what made it."""

from __future__ import annotations

import json
import platform
import threading
import urllib.request
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from common import settings, topology, version
from common.service import Service, serve
from common.settings import RunSettings
from common.submission import follow, submit
from common.transport.embedded import EmbeddedTransport
from physics import ANALYSES
from tests.support.file_server import Request, serving
from tests.support.real_data import DATA, SIMULATION, four_leptons, write_file
from tests.support.runs import QuietDisplay, before_deadline
from tests.support.waiting import free_port
from workers.analysis.service import AnalysisService
from workers.data_loader.service import DataLoader
from workers.data_processor.service import DataProcessor
from workers.visualisation.service import Visualisation


def test_no_secret_of_an_address_is_in_the_result_the_page_or_the_database(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    served = write_file(tmp_path / "served.root", [four_leptons(50e3, 40e3, 30e3, 20e3)] * 20).read_bytes()
    asked = []

    def answer(request: Request) -> None:
        asked.append(request.path)
        request.reply(*((200, served) if "data_A" in request.path else (404, b"no such file")))

    port, written = free_port(), tmp_path / "written"
    read = settings.read({
        "CACHE": str(tmp_path / "cache"), "OUTPUT": str(written / "results"), "PAGE_PORT": str(port),
        "DATABASE": str(written / "analysis.sqlite"),
    })  # fmt: skip
    transport, stop = EmbeddedTransport(), threading.Event()
    services: list[Service] = [AnalysisService(read), DataLoader(read), DataProcessor(read), Visualisation(read)]
    loops = [threading.Thread(target=serve, args=(one, transport.open(one.consumes), stop)) for one in services]
    with serving() as server:
        server.script = [answer]
        address = server.url("").replace("://", "://user:s3cret@") + "/open?token=t0ken#frag"
        run = RunSettings(data=address, samples=(DATA.name, SIMULATION.name), plots=False)
        session = transport.open([topology.follower("run")])
        for loop in loops:
            loop.start()
        try:
            submit(session, "run", run)
            outcome = follow(session, "run", ANALYSES, QuietDisplay(), before_deadline())
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/runs/run") as page:
                (written / "page.html").write_bytes(page.read())
        finally:
            stop.set()
            transport.shut_down()
            for loop in loops:
                loop.join(20)
    result = outcome.result
    assert result is not None, outcome.problem
    assert any("t0ken" in path for path in asked)
    (written / "log").write_text(caplog.text)
    for path in written.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert [secret for secret in (b"s3cret", b"t0ken", b"user:") if secret in content] == [], path

    assert "404" in result["problems"][0]
    made_by = result["provenance"]
    assert made_by["inputs"] == {
        "data_A": {
            "location": f"{server.url('')}/open/{DATA.file}",
            "bytes": len(served),
            "adler32": f"{zlib.adler32(served):08x}",
        }
    }
    assert (made_by["version"], made_by["packages"]["numpy"]) == (version.VERSION, np.__version__)
    assert made_by["platform"].endswith(f", {platform.system()} {platform.machine()}")
    assert {service: len(names) for service, names in made_by["replicas"].items()} == {
        "data-loader": 1, "data-processor": 1, "analysis": 1,
    }  # fmt: skip
    assert result["timing"]["waits"].keys() >= {"planned", "read", "selected", "added", "waited in queue events"}
    shown = [event for event in json.loads(outcome.files["timeline.json"])["traceEvents"] if event["ph"] == "X"]
    steps = Counter(event["name"] for event in shown if event["args"] == {"sample": "data_A", "chunk": "0:20"})
    assert steps == {"planned": 1, "read": 1, "published": 2, "selected": 1, "added": 1}
