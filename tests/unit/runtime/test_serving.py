"""Serving: queues, batches and time-outs by hand, Little's law in every run, and the simulator's own times."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from neuron_mlir.errors import NeuronError
from neuron_mlir.machine import load_machine
from neuron_mlir.runtime.modules import read_module
from neuron_mlir.runtime.serving import (
    ANSWERED,
    GIVEN_UP,
    LATE,
    PS_PER_S,
    Arrivals,
    Closed,
    Machine,
    Poisson,
    Policy,
    Served,
    little,
    percentile,
    serve,
)
from neuron_mlir.runtime.serving_report import cost_of, report_load
from neuron_mlir.simulator import session
from neuron_mlir.simulator.machine_run import MachineSimulator
from neuron_mlir.simulator.program import Program, read_program
from neuron_mlir.simulator.report import program_bound, request_load

GOLDEN = Path(__file__).parents[2] / "lit" / "golden" / "two_stage_final.mlir"
US = 10**6


def program() -> Program:
    return read_program(read_module(GOLDEN))


def machine(copies: int = 1) -> Machine:
    return Machine([program() for _ in range(copies)])


class Listed:
    """Arrivals at given times."""

    def __init__(self, *times: int) -> None:
        self.times = times

    def first(self) -> Iterator[tuple[int, int]]:
        return ((time, client) for client, time in enumerate(self.times))

    def after(self, client: int, time: int) -> int | None:
        return None


def check(served: Served, policy: Policy) -> None:
    """What holds in every run."""
    assert all(i.state in (ANSWERED, GIVEN_UP, LATE) and i.ended >= i.arrived for i in served.inferences)
    assert served.area_ps == sum(i.ended - i.arrived for i in served.inferences), "Little's law"
    sent = [i.sent for i in served.inferences if i.state != GIVEN_UP]
    assert sent == sorted(sent), "first come, first served"
    assert all(i.sent < 0 for i in served.inferences if i.state == GIVEN_UP)
    assert sum(size for *_, size in served.requests) == len(sent)
    assert all(1 <= size <= policy.batch for *_, size in served.requests)
    for time in {request[0] for request in served.requests}:
        assert sum(start <= time < end for start, end, *_ in served.requests) <= policy.in_flight


def alone() -> int:
    """Time of one request that finds the machine empty."""
    served = serve(machine(), Listed(0), Policy())
    return served.inferences[0].ended


@pytest.mark.parametrize("in_flight", [1, 2, 5])
def test_a_closed_loop_is_what_neuron_run_does(in_flight: int) -> None:
    """As many clients as requests in flight: the same times, but for the 50 cycles after which a run sends again."""
    run = MachineSimulator(program(), values=False, hazards=False).run(20, in_flight)
    served = serve(machine(), Closed(in_flight, 20), Policy(1, in_flight))
    times = [i.ended - i.sent for i in served.inferences]
    assert times[0] == run.finished[0] - run.started[0]
    assert served.inferences[-1].ended == pytest.approx(run.finished[-1], rel=0.01)
    check(served, Policy(1, in_flight))


def test_all_at_once_is_what_neuron_run_does() -> None:
    run = MachineSimulator(program(), values=False, hazards=False).run(12)
    served = serve(machine(), Listed(*[0] * 12), Policy(1, 12))
    assert [i.ended for i in served.inferences] == run.finished


@pytest.mark.parametrize("seed", range(12))
def test_littles_law(seed: int) -> None:
    """L = lambda W, with the number inside counted while the run goes on, for any policy and load."""
    numbers = random.Random(seed)
    unit = alone()
    policy = Policy(
        batch=numbers.choice([1, 2, 4]),
        in_flight=numbers.randint(1, 6),
        window_ps=numbers.choice([0, unit // 3, 2 * unit]),
        timeout_ps=numbers.choice([None, unit // 2, 2 * unit, 5 * unit]),
    )
    arrivals: Arrivals = Closed(numbers.randint(1, 12), 60, numbers.choice([0, unit]))
    if seed % 2:
        arrivals = Poisson(numbers.uniform(0.3, 4) * PS_PER_S / unit, 60, seed)
    here = machine(numbers.choice([1, 2]))
    served = serve(here, arrivals, policy)
    assert len(served.inferences) == 60
    check(served, policy)
    report = report_load(served, here, 6)
    for law in report.little.values():
        assert law.area_ps == law.stays_ps
        assert law.number == pytest.approx(law.rate_per_s * law.stay_ps / PS_PER_S, rel=1e-12)
    assert report.answered + report.given_up + report.late == 60
    shares = [share for core in report.engine_utilization.values() for share in core.values()]
    assert all(0 <= share <= 1.2 for share in [*shares, *report.resource_utilization.values()])


def test_little_by_hand() -> None:
    law = little([(0, 4), (1, 3), (6, 7)], 10)
    assert (law.area_ps, law.stays_ps, law.count) == (7, 7, 3)
    assert law.number == 0.7 and law.stay_ps == 7 / 3


def test_batches_fill_within_the_window() -> None:
    """Three come close together, and one late: with a window for two, the third waits for its own window."""
    times = (0, 10 * US, 11 * US, 500 * US)
    policy = Policy(batch=2, in_flight=9, window_ps=100 * US)
    served = serve(machine(), Listed(*times), policy)
    assert [i.sent for i in served.inferences] == [10 * US, 10 * US, 111 * US, 600 * US]
    assert sorted(size for *_, size in served.requests) == [1, 1, 2]
    assert served.inferences[0].ended == served.inferences[1].ended
    check(served, policy)


def test_without_a_window_what_waits_goes_together() -> None:
    """While the machine is full the queue grows; then as many go as fit a request."""
    unit = alone()
    times = (0, 1 * US, 2 * US, 3 * US)
    served = serve(machine(), Listed(*times), Policy(batch=4, in_flight=1))
    assert [i.sent for i in served.inferences] == [0, unit, unit, unit]
    assert [size for *_, size in served.requests] == [1, 3]


def test_time_outs() -> None:
    """Who waits in the queue goes without being sent; who is being served goes, and the machine goes on."""
    unit = alone()
    policy = Policy(in_flight=1, timeout_ps=unit - US)
    served = serve(machine(), Listed(0, 1, unit - 1), policy)
    first, second, third = served.inferences
    assert (first.state, first.ended) == (LATE, unit - US)
    assert (second.state, second.ended, second.sent) == (GIVEN_UP, 1 + unit - US, -1)
    assert third.sent == unit, "the machine was busy with the first until then"
    assert len(served.requests) == 2
    check(served, policy)
    generous = serve(machine(), Listed(0), Policy(timeout_ps=unit))
    assert generous.inferences[0].state == ANSWERED, "an answer at the last moment counts"


def test_clients_of_a_closed_loop_think() -> None:
    unit = alone()
    served = serve(machine(), Closed(1, 3, 7 * US), Policy())
    assert [i.arrived for i in served.inferences][:2] == [0, unit + 7 * US]
    assert len({i.client for i in served.inferences}) == 1


def test_poisson_arrivals() -> None:
    """Seeded; the mean and the spread of an exponential."""
    times = [time for time, _ in Poisson(1000, 20_000, 3).first()]
    assert times == [time for time, _ in Poisson(1000, 20_000, 3).first()]
    assert times != [time for time, _ in Poisson(1000, 20_000, 4).first()]
    gaps = [b - a for a, b in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(1e9, rel=0.03) and spread == pytest.approx(mean, rel=0.03)


def test_copies_share_the_load() -> None:
    here = machine(2)
    assert here.cores == 4 and [s.program.cores for s in here.sessions] == [[0, 1], [2, 3]]
    served = serve(here, Closed(2, 40), Policy(in_flight=2))
    counts = [sum(request[2] == copy for request in served.requests) for copy in range(2)]
    assert counts == [20, 20]
    one = serve(machine(), Closed(1, 40), Policy(in_flight=1))
    assert served.inferences[-1].ended < 0.7 * one.inferences[-1].ended
    with pytest.raises(NeuronError, match="do not fit the machine"):
        Machine([program() for _ in range(33)])


def test_a_machine_that_starts_its_counters_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two requests the machine may have to finish all before: nobody is lost, and the law holds."""
    monkeypatch.setattr(session, "SIGNALS_KEPT", 200)
    here, policy = machine(), Policy(batch=2, in_flight=3, timeout_ps=400 * US)
    served = serve(here, Closed(8, 60), policy)
    check(served, policy)
    assert sum(i.state == ANSWERED for i in served.inferences) > 40


def test_the_report() -> None:
    here = machine()
    served = serve(here, Closed(8, 200), Policy(in_flight=5))
    report = report_load(served, here, 20)
    bound = program_bound(request_load(program())).throughput_per_s
    assert 0.5 * bound < report.throughput_per_s <= bound * (1 + 1e-9)
    assert report.measured == 180 and report.mean_batch == 1
    assert report.latency_ms.p50 <= report.latency_ms.p90 <= report.latency_ms.p99 <= report.latency_ms.max
    assert 0 < report.queue_ms.mean < report.latency_ms.mean
    shares = [share for core in report.engine_utilization.values() for share in core.values()]
    most = max(*shares, *report.resource_utilization.values())
    assert most == pytest.approx(report.throughput_per_s / bound, rel=0.02)
    assert set(report.stage_utilization) == {stream.stage for stream in program().streams}
    assert max(report.stage_utilization.values()) == max(shares)
    assert report.cost is not None and report.cost.instance == "inf1.xlarge"
    million = report.cost.dollars_per_hour / 3600 / report.throughput_per_s * 1e6
    assert report.cost.dollars_per_million == pytest.approx(million)
    assert report.to_json()["little"]["system"]["number"] == pytest.approx(8, rel=0.1)


def test_cost() -> None:
    known = load_machine()
    cost = cost_of(known, 16, 1000.0)
    assert cost is not None and cost.instance == "inf1.6xlarge" and cost.dollars_per_hour == 1.18
    assert cost.dollars_per_million == pytest.approx(1.18 / 3600 / 1000 * 1e6)
    assert cost_of(known, 10_000, 1.0) is None
    idle = cost_of(known, 1, 0.0)
    assert idle is not None and idle.dollars_per_million is None


def test_percentile() -> None:
    assert [percentile([4, 1, 3, 2], q) for q in (1, 25, 50, 51, 99, 100)] == [1, 1, 2, 3, 4, 4]
    assert percentile([], 50) == 0
