"""No password and no key is written anywhere: not in logs at their loudest, in results, or in the list of processes."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from common.settings import BrokerSettings
from tests.support.broker import Broker
from tests.support.paths import ROOT
from tests.support.waiting import wait_until
from tests.support.workers import Workers

pytestmark = pytest.mark.broker


class Loud(Workers):
    """Services that log all they can."""

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "LOG_LEVEL": "DEBUG"}


@pytest.fixture
def loud(broker: Broker, vhost: BrokerSettings, tmp_path: Path) -> Iterator[Loud]:
    """Services that run as a user of their own, whose password and key are like no other text."""
    user, password, key = (f"{name}-{secrets.token_hex(16)}" for name in ("user", "password", "key"))
    broker.api("PUT", f"users/{user}", {"password": password, "tags": ""})
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    broker.api("PUT", f"permissions/{vhost.vhost}/{user}", everything)
    running = Loud(replace(vhost, user=user, password=password, message_key=key), tmp_path)
    yield running
    running.stop()
    broker.api("DELETE", f"users/{user}")


def command_lines(user: str) -> set[str]:
    """The command lines of all processes that have our broker's user in their environment."""
    found = set()
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and user.encode() in (process / "environ").read_bytes():
                found.add((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it has ended
            continue
    return found


def test_neither_password_nor_key_is_in_logs_results_or_command_lines(
    loud: Loud, broker: Broker, tmp_path: Path
) -> None:
    loud.start_all()
    wait_until(lambda: "connected to" in loud.log("visualisation"), "the services are there", 60)
    environment = os.environ | loud.environment() | {"OUTPUT": str(tmp_path / "results"), "RELEASE": "demo"}
    url = f"amqp://{loud.settings.host}:{loud.settings.port}"
    command = [sys.executable, ROOT / "analysis.py", "--demo-events", "500", "--broker", url]
    with (tmp_path / "analysis.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=log, stderr=log)
        seen = set[str]()
        while process.poll() is None:
            seen |= command_lines(loud.settings.user)
    assert process.returncode == 0, (tmp_path / "analysis.log").read_text()
    for program in ("workers.data_loader", "workers.analysis", "analysis.py"):
        assert any(program in line for line in seen)
    # A broker that refuses is told of, too, and a lost connection.
    assert broker.cut_connections(loud.settings) > 0
    wait_until(lambda: "is away" in loud.log("analysis"), "the lost connection is logged", 30)
    broker.api("DELETE", f"permissions/{loud.settings.vhost}/{loud.settings.user}")
    loud.start("data_processor")
    wait_until(lambda: "RABBITMQ_" in loud.log("data_processor"), "the refusal is told", 30)
    loud.stop()

    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert any(path.name == "result.json" for path in written)
    assert b"DEBUG" in written[tmp_path / "data_loader.log"]
    for secret in (loud.settings.password, loud.settings.message_key):
        assert not [line for line in seen if secret in line]
        assert not [path for path, content in written.items() if secret.encode() in content]
