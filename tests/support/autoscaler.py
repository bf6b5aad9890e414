"""How KEDA and the HorizontalPodAutoscaler compute the number of replicas from the messages of a queue.

The formula and its defaults are those of https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale/
and https://keda.sh/docs/latest/concepts/scaling-deployments/.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: The relative difference between the metric and its target below which nothing is scaled.
TOLERANCE = 0.1


def desired_replicas(current: int, messages: int, target: float) -> int:
    """Return the replicas for an external metric with a target average value; ``current`` is at least 1."""
    if abs(messages / (target * current) - 1.0) <= TOLERANCE:
        return current
    return math.ceil(messages / target)


@dataclass
class Autoscaler:
    """The autoscaler of one service, with the limits, targets and times of its manifest.

    Parameters
    ----------
    targets
        The messages for each replica, by queue.
    minimum, maximum
        The limits of the number of replicas.
    up_s, down_s
        The stabilization windows: the scale rises to the lowest, and falls to the highest recommendation within it.
    cooldown_s
        The time without a message after which a minimum of 0 is reached; unused by the HorizontalPodAutoscaler.
    """

    targets: Mapping[str, float]
    minimum: int
    maximum: int
    up_s: float
    down_s: float
    cooldown_s: float = 0.0
    _recommended: list[tuple[float, int]] = field(default_factory=list)
    _last_message: float = -math.inf

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any], seconds: float = 1.0) -> Autoscaler:
        """Read a ScaledObject or a HorizontalPodAutoscaler; a second of its times lasts ``seconds``."""
        spec = manifest["spec"]
        if manifest["kind"] == "ScaledObject":
            triggers = [trigger["metadata"] for trigger in spec["triggers"]]
            targets = {trigger["queueName"]: float(trigger["value"]) for trigger in triggers}
            behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
            limits = spec["minReplicaCount"], spec["maxReplicaCount"]
        else:
            metrics = [metric["external"] for metric in spec["metrics"]]
            targets = {
                metric["metric"]["selector"]["matchLabels"]["queue"]: float(metric["target"]["averageValue"])
                for metric in metrics
            }
            behavior = spec["behavior"]
            limits = spec["minReplicas"], spec["maxReplicas"]
        up_s, down_s = (behavior[way]["stabilizationWindowSeconds"] * seconds for way in ("scaleUp", "scaleDown"))
        return cls(targets, *limits, up_s, down_s, spec.get("cooldownPeriod", 0) * seconds)

    def replicas(self, now: float, current: int, messages: Mapping[str, int]) -> int:
        """Return the number of replicas at the time ``now`` in seconds, from the messages by queue."""
        if any(messages[queue] for queue in self.targets):
            self._last_message = now
            if current == 0:
                return 1
        elif current == 0 or (self.minimum == 0 and now - self._last_message >= self.cooldown_s):
            self._recommended.clear()
            return self.minimum
        wanted = max(desired_replicas(current, messages[queue], target) for queue, target in self.targets.items())
        self._recommended = [(at, n) for at, n in self._recommended if at > now - max(self.up_s, self.down_s)]
        self._recommended.append((now, wanted))
        lowest = min(n for at, n in self._recommended if at > now - self.up_s or at == now)
        highest = max(n for at, n in self._recommended if at > now - self.down_s or at == now)
        stabilized = min(max(current, lowest), highest)
        return min(max(stabilized, self.minimum, 1), self.maximum)
