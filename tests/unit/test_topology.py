"""The routing table is complete and unambiguous."""

from __future__ import annotations

from collections import Counter

from common import messages, topology


def test_every_kind_of_message_is_carried_by_one_queue_or_exchange() -> None:
    carried = Counter(kind for target in (*topology.EXCHANGES, *topology.QUEUES) for kind in target.kinds)
    assert set(carried.values()) == {1}
    assert {kind: message.route for kind, message in messages.KINDS.items()}.items() <= topology.ROUTES.items()


def test_every_queue_has_a_consumer_and_every_exchange_a_queue() -> None:
    services = {"data-loader", "data-processor", "analysis", "visualisation"}
    assert {queue.consumer for queue in topology.QUEUES} == services
    assert [queue.name for queue in topology.consumed_by("data-loader")] == [
        "runs",
        "chunks",
        "cancellations.data-loader",
    ]
    assert topology.consumers_of(["selected", "plans", "events"]) == ["analysis", "data-processor"]
    bound = {
        exchange
        for queue in (*topology.QUEUES, *topology.REPLICA_QUEUES, topology.LISTER, topology.follower("run"))
        for exchange in queue.exchanges
    }
    assert bound == {exchange.name for exchange in topology.EXCHANGES}


def test_a_message_comes_into_a_queue_directly_or_by_the_exchanges_it_is_bound_to() -> None:
    assert topology.routes_to("plans") == ("plans",)
    assert topology.routes_to("results.visualisation") == ("results.visualisation", "results")
    assert topology.routes_to("cancellations.data-processor") == ("cancellations.data-processor", "cancellations")
    assert topology.routes_to("lister") == ("lister", "run-lists")
    assert topology.routes_to("follow.run") == ("follow.run", "results", "result-files")
