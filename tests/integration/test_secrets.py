"""Passwords and message keys appear in no log, no result and no command line."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from common.settings import BrokerSettings
from tests.support.broker import Broker
from tests.support.paths import ROOT
from tests.support.waiting import wait_until
from tests.support.workers import Workers

pytestmark = pytest.mark.broker


class DebugWorkers(Workers):
    """Services with LOG_LEVEL=DEBUG."""

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "LOG_LEVEL": "DEBUG"}


@pytest.fixture
def debug_workers(broker: Broker, vhost: BrokerSettings, tmp_path: Path, cache: Path) -> Iterator[DebugWorkers]:
    """Services that connect as a user with a random password and sign with a random key."""
    user, password, key = (f"{name}-{secrets.token_hex(16)}" for name in ("user", "password", "key"))
    broker.api("PUT", f"users/{user}", {"password": password, "tags": ""})
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    broker.api("PUT", f"permissions/{vhost.vhost}/{user}", everything)
    running = DebugWorkers(replace(vhost, user=user, password=password, message_key=key), tmp_path, cache)
    yield running
    running.stop()
    broker.api("DELETE", f"users/{user}")


def command_lines(user: str) -> set[str]:
    """The command lines of all processes that have this user of the broker in their environment."""
    found = set()
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and user.encode() in (process / "environ").read_bytes():
                found.add((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # the process has exited
            continue
    return found


@pytest.mark.slow
def test_neither_password_nor_key_is_in_logs_results_or_command_lines(
    debug_workers: DebugWorkers, broker: Broker, tmp_path: Path
) -> None:
    debug_workers.start_all()
    wait_until(lambda: "connected to" in debug_workers.log("visualisation"), "the services are connected", 60)
    environment = os.environ | debug_workers.environment() | {"OUTPUT": str(tmp_path / "results"), "RELEASE": "demo"}
    url = f"amqp://{debug_workers.settings.host}:{debug_workers.settings.port}"
    command = [sys.executable, ROOT / "analysis.py", "--demo-events", "500", "--no-plots", "--broker", url]
    with (tmp_path / "analysis.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log)
        seen = set[str]()
        while process.poll() is None:
            seen |= command_lines(debug_workers.settings.user)
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
    assert process.returncode == 0, (tmp_path / "analysis.log").read_text()
    for program in ("workers.data_loader", "workers.analysis", "analysis.py"):
        assert any(program in line for line in seen)
    # A lost connection and a refused login are logged too.
    assert broker.cut_connections(debug_workers.settings) > 0
    wait_until(lambda: "connecting again" in debug_workers.log("analysis"), "the lost connection is logged", 30)
    broker.api("DELETE", f"permissions/{debug_workers.settings.vhost}/{debug_workers.settings.user}")
    debug_workers.start("data_processor")
    wait_until(lambda: "RABBITMQ_" in debug_workers.log("data_processor"), "the refusal is logged", 30)
    debug_workers.stop()

    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert any(path.name == "result.json" for path in written)
    assert b"DEBUG" in written[tmp_path / "data_loader.log"]
    for secret in (debug_workers.settings.password, debug_workers.settings.message_key):
        assert not [line for line in seen if secret in line]
        assert not [path for path, content in written.items() if secret.encode() in content]
