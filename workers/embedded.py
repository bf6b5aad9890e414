"""All four services in this process, over the embedded transport."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from common.service import Service, serve
from common.settings import Settings
from common.transport.embedded import EmbeddedTransport
from workers.analysis.service import Analysis
from workers.analysis.store import Store
from workers.data_loader.service import DataLoader
from workers.data_processor.service import DataProcessor
from workers.visualisation.service import Visualisation


class EmbeddedServices:
    """The services, one thread each; a context manager.

    The analysis keeps its rows in memory, and whoever follows a run writes its folder.
    """

    def __init__(self, settings: Settings, *, data_loaders: int = 1, data_processors: int = 1) -> None:
        self.transport = EmbeddedTransport()
        self._stop = threading.Event()
        self._failures: list[BaseException] = []
        services: list[Service] = [
            *(DataLoader(settings) for _ in range(data_loaders)),
            *(DataProcessor(settings) for _ in range(data_processors)),
            Analysis(settings, Store(None)),
            Visualisation(settings, keep=False),
        ]
        self._threads = [
            threading.Thread(target=self._serve, args=(service,), name=service.name, daemon=True)
            for service in services
        ]

    def is_alive(self) -> bool:
        """True while all services run; raises what ended one that does not."""
        for failure in self._failures:
            raise failure
        return True

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self.transport.shut_down()
        for thread in self._threads:
            thread.join(timeout=5)

    def _serve(self, service: Service) -> None:
        try:
            serve(service, self.transport.open(service.consumes), self._stop)
        except BaseException as failure:
            self._failures.append(failure)
