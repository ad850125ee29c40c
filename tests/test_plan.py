"""A dry run says exactly what a send does: which services it asks, in which order, and why not."""

from __future__ import annotations

import contextlib

import pytest
from conftest import make_message
from test_batch import Scripted
from test_pool import Clock

from email_services.capabilities import Capabilities
from email_services.drill import Drill
from email_services.exceptions import MessageRejected
from email_services.health import Health
from email_services.pool import PooledEmailService
from email_services.store import ServiceState, Store

NOW = Clock().now


def resting(until: float, **more) -> Health:
    return Health(1, 1, NOW + until, since=NOW - 20, reason="down", rest_seconds=250, **more)


STATES = {
    "works": ServiceState(),
    "failed before": ServiceState(Health(failures=3)),
    "rests": ServiceState(resting(200)),
    "rests for less": ServiceState(resting(100)),
    "has rested": ServiceState(resting(-1)),
    "is being probed": ServiceState(resting(-1, probe_until=NOW + 10)),
    "a drill": ServiceState(drill=Drill()),
    "rests by a drill": ServiceState(resting(150, simulated=True), Drill()),
    "rested by a drill that has lapsed": ServiceState(
        resting(150, simulated=True), Drill(until=NOW - 1)
    ),
}
LACKING = Capabilities(tags=0)
CARRY = {"all": (), "not the first": ("a",), "not the second": ("b",), "none": ("a", "b", "c")}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan")
    with contextlib.closing(Store(f"sqlite:///{path}/state.sqlite3")) as opened:
        yield opened


def refuse(_message) -> MessageRejected:
    """So that each of them is asked, and no other is by a fault of its own."""
    return MessageRejected("no")


@pytest.mark.parametrize("carry", CARRY)
@pytest.mark.parametrize("second", STATES)
@pytest.mark.parametrize("first", STATES)
def test_a_dry_run_says_what_a_send_does(first, second, carry, store):
    domain = f"{carry}-{first}-{second}".replace(" ", "-")
    states = {"a": STATES[first], "b": STATES[second], "c": STATES["rests"]}
    for only in (None, "a", "b"):
        services = [
            Scripted(name, refuse, -n, lacks=LACKING if name in CARRY[carry] else None)
            for n, name in enumerate(states)
        ]
        pool = PooledEmailService(
            f"{domain}.{only}", services, store, clock=Clock(), now=lambda: NOW
        )
        for name, state in states.items():
            store.change_service(pool.email_domain, name, lambda _, s=state: (s, ""), NOW)
        one, message = only and pool.service(only), make_message(tags="x")
        planned = pool.plan(message, one)
        attempts = pool.send(message, one).attempts
        assert [(step.service.name, step.decision == "skip") for step in planned] == [
            (attempt.service, attempt.outcome == "skipped") for attempt in attempts
        ]
        skipped = [attempt.reason for attempt in attempts if attempt.outcome == "skipped"]
        assert [step.reason for step in planned if step.decision == "skip"] == skipped
