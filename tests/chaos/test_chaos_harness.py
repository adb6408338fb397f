"""The harness itself: what it must notice, and that a seed stands for a schedule."""

from __future__ import annotations

import base64
import contextlib
import copy
import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from chaos_faults import FAULTS, BrokerKill, Kill, SlackCut, schedule
from chaos_stream import Outcome, chaos_stream, configured, is_own, reference, trees_of_both
from tcp_proxy import Proxy, proxied


@pytest.fixture(scope="module")
def expected() -> Outcome:
    return reference(configured(), chaos_stream(5))


def lose_a_finding(found: Outcome) -> None:
    found.findings.popitem()


def make_up_a_finding(found: Outcome) -> None:
    found.findings["f-0"] = {"severity": "warning"}


def change_a_field(found: Outcome) -> None:
    next(iter(found.findings.values()))["observed"] = -1.0


def find_again_but_differently(found: Outcome) -> None:
    found.take_finding(next(iter(found.findings.values())) | {"observed": -1.0})


def lose_an_incident(found: Outcome) -> None:
    found.incidents.popitem()


def leave_an_incident_open(found: Outcome) -> None:
    name = next(name for name, (_, state) in found.incidents.items() if state == "resolved")
    found.incidents[name] = (found.incidents[name][0], "open")


def open_an_incident_twice(found: Outcome) -> None:
    name, (severity, state) = next(iter(found.incidents.items()))
    found.take_change({"id": name, "change": "opened", "severity": severity, "state": state, "root_run_id": "r"})


def post_twice(found: Outcome) -> None:
    found.posts[next(iter(found.incidents))] += 1


def post_about_another_twice(found: Outcome) -> None:
    found.posts[next(iter(found.others))] += 1


def post_nothing(found: Outcome) -> None:
    del found.posts[next(iter(found.incidents))]


def lose_a_kill_command(found: Outcome) -> None:
    del found.proposals[next(name for name, says in found.proposals.items() if says[0] in found.incidents)]


def propose_to_kill_another(found: Outcome) -> None:
    name, (incident, target) = next(iter(found.proposals.items()))
    payload = {"command_id": name, "reason": {"incident_id": incident}, "target": target | {"id": "another"}}
    found.take_proposal(json.dumps({"payload": base64.b64encode(json.dumps(payload).encode()).decode()}).encode())


DAMAGES = [
    lose_a_finding,
    make_up_a_finding,
    change_a_field,
    find_again_but_differently,
    lose_an_incident,
    leave_an_incident_open,
    open_an_incident_twice,
    post_twice,
    post_about_another_twice,
    post_nothing,
    lose_a_kill_command,
    propose_to_kill_another,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_no_damage_goes_unnoticed(expected: Outcome, damage: Callable[[Outcome], None]) -> None:
    found = copy.deepcopy(expected)
    assert found.differences(expected) == []
    damage(found)
    assert found.differences(expected)


def test_a_finding_may_be_on_its_topic_again_if_it_says_the_same(expected: Outcome) -> None:
    found = copy.deepcopy(expected)
    found.take_finding(next(iter(found.findings.values())) | {"clock": 1.0, "source": "elsewhere"})
    assert found.differences(expected) == []


def test_a_reference_with_one_finding_less_is_not_met(expected: Outcome) -> None:
    less = copy.deepcopy(expected)
    name, _ = less.findings.popitem()
    (line,) = expected.differences(less)
    assert line.startswith(f"made up: finding {name}")


@pytest.mark.parametrize("seed", range(3))
def test_every_stream_has_something_of_everything_to_lose(seed: int) -> None:
    events = chaos_stream(seed, rounds=4)
    assert events == chaos_stream(seed, rounds=4)
    assert len({event["event_id"] for event in events}) > len(events) - 40  # random_stream has some twice
    outcome = reference(configured(), events)
    own = [finding for finding in outcome.findings.values() if is_own(finding["root_run_id"])]
    assert {finding["detector"] for finding in own} == {"retry_loop", "runaway", "spiral"}
    # What two partitions race for is left to the others.
    assert not trees_of_both(own)
    assert {state for _, state in outcome.incidents.values()} == {"open", "escalated", "resolved"}
    assert outcome.others
    assert {incident for incident, _ in outcome.proposals.values()} & set(outcome.incidents)


def test_a_seed_stands_for_a_schedule() -> None:
    schedules = [schedule(seed, 12.0, 4, 2) for seed in range(200)]
    assert schedules == [schedule(seed, 12.0, 4, 2) for seed in range(200)]
    assert len({tuple(map(str, faults)) for faults in schedules}) == 200
    counts = Counter(type(fault) for faults in schedules for fault in faults)
    assert set(counts) == set(FAULTS)
    assert min(counts.values()) > 20


@pytest.mark.parametrize("seed", range(50))
def test_one_target_fails_in_one_way_at_a_time(seed: int) -> None:
    faults = schedule(seed, 30.0, 30, 2)
    for target in (0, 1, BrokerKill, SlackCut):
        mine = [f for f in faults if f.worker == target or (f.worker is None and type(f) is target)]
        for one, following in pairwise(mine):
            assert one.at + one.lasts < following.at


def test_only_the_kinds_asked_for_happen() -> None:
    assert {type(fault) for fault in schedule(1, 60.0, 30, 2, [Kill])} == {Kill}


@pytest.fixture
def echo() -> Iterator[Proxy]:
    """A proxy in front of a server that sends back what it gets."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                one, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(one,), daemon=True).start()

    def answer(one: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1000):
                one.sendall(data)

    threading.Thread(target=serve, daemon=True).start()
    with proxied(*server.getsockname()) as proxy:
        yield proxy
    server.close()


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=10)


def test_a_proxy_passes_on_what_it_gets(echo: Proxy) -> None:
    with connect(echo) as one:
        one.sendall(b"hello")
        assert one.recv(10) == b"hello"


def test_a_proxy_that_refuses_resets_what_there_is_and_what_comes(echo: Proxy) -> None:
    with connect(echo) as one:
        one.sendall(b"hello")
        assert one.recv(10) == b"hello"
        echo.set("refused")
        with pytest.raises(ConnectionResetError):
            one.recv(10)
    with pytest.raises(ConnectionResetError), connect(echo) as two:
        two.recv(10)
    echo.set("open")
    with connect(echo) as three:
        three.sendall(b"again")
        assert three.recv(10) == b"again"


def test_a_proxy_that_stalls_keeps_what_is_sent_until_it_may_go_on(echo: Proxy) -> None:
    with connect(echo) as one:
        echo.set("stalled")
        one.sendall(b"hello")
        one.settimeout(0.2)
        with pytest.raises(TimeoutError):
            one.recv(10)
        one.settimeout(10)
        echo.set("open")
        assert one.recv(10) == b"hello"
