"""Which tests run by default; fixtures for RabbitMQ, a virtual host per test, both transports and the services."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.settings import BrokerSettings
from common.transport import Transport
from common.transport.embedded import EmbeddedTransport
from common.transport.rabbitmq import RabbitMQTransport
from tests.support.broker import Broker, shared_broker
from tests.support.workers import Workers

# As in the services: the transport logs a lost connection itself.
logging.getLogger("pika").setLevel(logging.CRITICAL)

# Tests start hundreds of processes. Without bytecode files, each of them would compile all modules of the repository.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# In the background of a shell SIGINT is ignored, also by the programs that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: Markers of tests that run only if -m names the marker, or with --all-tests.
NOT_BY_DEFAULT = ("compose", "docker", "kubernetes", "slow")
#: Markers of tests that run only if -m names the marker.
ONLY_BY_NAME = ("long",)
#: The files of tests/unit that --fast leaves out: they draw, fit, make files of events, start processes or servers,
#: or check manifests.
NOT_FAST = (
    "test_analysis_service.py",
    "test_broken_files.py",
    "test_comparison_explanations.py",
    "test_cpu_monitor*.py",
    "test_demo*.py",
    "test_drawing_pool.py",
    "test_fetch*.py",
    "test_fit*.py",
    "test_kubernetes*.py",
    "test_listeners.py",
    "test_page*.py",
    "test_plots.py",
    "test_python_result.py",
    "test_rates.py",
    "test_release_2025.py",
    "test_result_folder.py",
    "test_virtual_environment.py",
)
#: Markers of tests that must not run at the same time as other tests.
ALONE = ("alone", "docker", "kubernetes")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-tests", action="store_true", help=f"also run the tests marked {', '.join(NOT_BY_DEFAULT)}")
    parser.addoption("--fast", action="store_true", help="run only unit tests that need no service and little time")
    parser.addoption(
        "--stage",
        choices=["parallel", "alone"],
        help=f"run only the tests that may run beside others, or only those marked {', '.join(ALONE)}",
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files of which no test was selected, so that they are not imported either."""
    if config.getoption("--fast"):
        is_slower = collection_path.name in {"integration", "system"} or any(map(collection_path.match, NOT_FAST))
        return True if is_slower else None
    if config.getoption("--stage") == "alone" and collection_path.match("test_*.py"):
        text = collection_path.read_text()
        return None if any(f"mark.{marker}" in text for marker in ALONE) else True
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that were not selected; an expression given with -m applies to all others."""
    named = set(re.findall(r"\w+", config.getoption("-m")))
    by_marker = ONLY_BY_NAME if config.getoption("--all-tests") else (*NOT_BY_DEFAULT, *ONLY_BY_NAME)
    unwanted = [marker for marker in by_marker if marker not in named]
    stage = config.getoption("--stage")

    def is_wanted(item: pytest.Item) -> bool:
        markers = {marker.name for marker in item.iter_markers()}
        in_stage = stage is None or markers.isdisjoint(ALONE) == (stage == "parallel")
        return in_stage and markers.isdisjoint(unwanted)

    deselected = [item for item in items if not is_wanted(item)]
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if is_wanted(item)]
    # Long tests come first, so that no process ends with one of them.
    items.sort(key=lambda item: [item.get_closest_marker(marker) is None for marker in ("compose", "slow", "browser")])


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all processes of pytest-xdist share."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session")
def cache(session_folder: Path) -> Path:
    """A cache for all runs, so that each demo is made once."""
    folder = session_folder / "cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def broker(session_folder: Path) -> Iterator[Broker]:
    """A RabbitMQ for all tests, of which a test uses a virtual host and leaves everything else as it is."""
    with shared_broker(session_folder / "broker") as shared:
        yield shared


@pytest.fixture
def vhost(broker: Broker) -> Iterator[BrokerSettings]:
    """A virtual host for this test alone."""
    made = broker.new_vhost()
    yield made
    broker.delete_vhost(made)


@pytest.fixture(params=["embedded", pytest.param("rabbitmq", marks=pytest.mark.broker)])
def transport(request: pytest.FixtureRequest) -> Transport:
    """Each transport, with queues for this test alone."""
    if request.param == "embedded":
        return EmbeddedTransport()
    return RabbitMQTransport(request.getfixturevalue("vhost"), connect_timeout_s=20)


@pytest.fixture
def workers(vhost: BrokerSettings, tmp_path: Path, cache: Path) -> Iterator[Workers]:
    """Start services on this test's virtual host; they are stopped after the test."""
    running = Workers(vhost, tmp_path, cache)
    yield running
    running.stop()
