"""The deck of the long set: one fault of every sort."""

from __future__ import annotations

from collections.abc import Callable

from tests.chaos.delivery_faults import ComeLate, Duplicate, Reorder, RepeatRequest
from tests.chaos.disk_faults import FillDisk, FullDisk
from tests.chaos.fault import Fault
from tests.chaos.line_faults import Alarm, Cut, CutHandshake, Delay, Hold, KillBroker, PowerCut, Refuse
from tests.chaos.process_faults import Kill, KillAt, KillFit, Stop
from tests.chaos.stage import SERVICES
from tests.chaos.worker import OF_EVERY_SERVICE, OF_THE_ANALYSIS, OF_THE_VISUALISATION


def _deck() -> list[Fault]:
    points: list[Fault] = [KillAt(service, point=point) for service in SERVICES[:-1] for point in OF_EVERY_SERVICE]
    points += [KillAt("analysis", point=point) for point in OF_THE_ANALYSIS]
    # Nothing comes of the chunks' news there: it publishes folders only.
    points += [KillAt("visualisation", "drawing", point) for point in (*OF_EVERY_SERVICE, *OF_THE_VISUALISATION)]
    kills: list[Fault] = [*(Kill(service) for service in SERVICES), Kill("analysis", "fit"), KillFit()]
    kills += [Kill("visualisation", "drawing"), KillBroker(), KillBroker("fit"), KillBroker("drawing")]
    kills += [PowerCut(), PowerCut("fit"), PowerCut("drawing")]
    stops: list[Fault] = [*(Stop(service) for service in SERVICES), Stop("analysis", "fit")]
    stops.append(Stop("visualisation", "drawing"))
    lines: list[Fault] = [Cut(), Cut("drawing"), Refuse(), CutHandshake(1), CutHandshake(2), Delay(), Hold(), Alarm()]
    queues: list[Fault] = [RepeatRequest(late=False), RepeatRequest(late=True)]
    sorts: tuple[Callable[[str], Fault], ...] = (Duplicate, Reorder, ComeLate)
    queues += [of(queue) for queue in ("chunks", "events", "selected", "results.visualisation") for of in sorts]
    disks: list[Fault] = [
        FullDisk("analysis", complaint="waits: the database"),
        FullDisk("visualisation", "drawing", "cannot be written"),
        FillDisk(),
    ]
    return [*points, *kills, *stops, *lines, *queues, *disks]


#: One fault of every sort.
DECK: tuple[Fault, ...] = tuple(_deck())
