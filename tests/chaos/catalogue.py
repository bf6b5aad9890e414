"""The fault catalogue: every fault that can be injected where the services are processes."""

from __future__ import annotations

from collections.abc import Callable

from tests.chaos.delivery_faults import Duplicate, RedeliverAfterRun, Reorder, RepeatRequest
from tests.chaos.disk_faults import FillDisk, FullDisk
from tests.chaos.environment import SERVICES
from tests.chaos.fault import Fault
from tests.chaos.network_faults import Cut, CutHandshake, Delay, Hold, KillBroker, MemoryAlarm, PowerCut, Refuse
from tests.chaos.process_faults import Kill, KillAt, KillFit, Stop
from tests.chaos.service_process import ANALYSIS_POINTS, COMMON_POINTS, VISUALISATION_POINTS


def _faults() -> list[Fault]:
    points: list[Fault] = [KillAt(service, point=point) for service in SERVICES[:-1] for point in COMMON_POINTS]
    points += [KillAt("analysis", point=point) for point in ANALYSIS_POINTS]
    # While chunks are handled, the visualisation publishes nothing.
    points += [KillAt("visualisation", "drawing", point) for point in (*COMMON_POINTS, *VISUALISATION_POINTS)]
    kills: list[Fault] = [*(Kill(service) for service in SERVICES), Kill("analysis", "fit"), KillFit()]
    kills += [Kill("visualisation", "drawing"), KillBroker(), KillBroker("fit"), KillBroker("drawing")]
    kills += [PowerCut(), PowerCut("fit"), PowerCut("drawing")]
    stops: list[Fault] = [*(Stop(service) for service in SERVICES), Stop("analysis", "fit")]
    stops.append(Stop("visualisation", "drawing"))
    network: list[Fault] = [Cut(), Cut("drawing"), Refuse(), CutHandshake(1), CutHandshake(2), Delay(), Hold()]
    network.append(MemoryAlarm())
    deliveries: list[Fault] = [RepeatRequest(late=False), RepeatRequest(late=True)]
    kinds: tuple[Callable[[str], Fault], ...] = (Duplicate, Reorder, RedeliverAfterRun)
    deliveries += [of(queue) for queue in ("chunks", "events", "selected", "results.visualisation") for of in kinds]
    disks: list[Fault] = [
        FullDisk("analysis", log_text="waits: the database"),
        FullDisk("visualisation", "drawing", "cannot be written"),
        FillDisk(),
    ]
    return [*points, *kills, *stops, *network, *deliveries, *disks]


FAULTS: tuple[Fault, ...] = tuple(_faults())
