"""CP-SAT on the partition problem, for graphs whose ideals are too many to enumerate."""

from __future__ import annotations

from fractions import Fraction

from neuron_mlir.solvers.certificate import Progress
from neuron_mlir.solvers.partition import HOST_PASSES, PS_PER_S, RING_PASSES, PartitionProblem, evaluate

SEED = 7


def improve(
    problem: PartitionProblem, start: list[int], bound: int, work: float, good_enough: float, progress: Progress | None
) -> tuple[list[int], int]:
    """The best assignment found from `start` on, and a lower bound over all topological orders.

    `work` is CP-SAT's deterministic time. The model relaxes how many bytes a byte of exceeded capacity streams (the
    least of all nodes stands for all), leaves out what parts of streamed weights take, and rounds times down to a grid,
    so its bound is a bound of the problem; what it finds is evaluated exactly, and kept if better.
    """
    from ortools.sat.python import cp_model

    best, best_objective = list(start), evaluate(problem, start).objective
    if best_objective <= bound:
        return best, bound
    # Coefficients of a few million keep CP-SAT's sums far from overflow; a grid this fine costs 1e-5 of the objective.
    grid = max(1, best_objective // 100_000)
    byte_grid = max(
        1, sum(v.size_bytes for v in problem.values) + sum(n.weight_bytes + n.dram_bytes for n in problem.nodes) >> 22
    )
    model = cp_model.CpModel()
    stages, nodes = range(problem.stages), range(len(problem.nodes))
    bottleneck = model.new_int_var(bound // grid, -(-best_objective // grid), "bottleneck")
    at_most = [[model.new_bool_var(f"n{n}<={k}") for k in stages] for n in nodes]
    for n in nodes:
        model.add(at_most[n][-1] == 1)
        for k in stages[1:]:
            model.add_implication(at_most[n][k - 1], at_most[n][k])
        for source in problem.predecessors[n]:
            for k in stages:
                model.add_implication(at_most[n][k], at_most[source][k])
    inside = [[at_most[n][k] - (at_most[n][k - 1] if k else 0) for k in stages] for n in nodes]

    def moved(size: int) -> int:
        return size // byte_grid

    def time_of(rate: int) -> tuple[int, int]:
        """Units of the byte grid per unit of the time grid, rounded up, as a small fraction (numerator,
        denominator).
        """
        exact = Fraction(grid * rate, PS_PER_S * byte_grid)
        scaled = -(-exact.numerator * 1000 // exact.denominator)
        return scaled, 1000

    ratios = [Fraction(n.weight_bytes, n.resident_bytes) for n in problem.nodes if n.resident_bytes]
    ratio = min(ratios, default=Fraction(0))
    dram_reads: list[list[cp_model.LinearExprT]] = []
    received: list[cp_model.LinearExprT] = []
    for k in stages:
        model.add(sum(problem.nodes[n].compute_ps // grid * inside[n][k] for n in nodes) <= bottleneck)
        if problem.exactly:
            model.add(sum(inside[n][k] for n in nodes) >= 1)
        stream = model.new_int_var(0, max(0, moved(sum(n.weight_bytes for n in problem.nodes))), f"streamed{k}")
        # Rounded down node by node, and the capacity rounded up: never more than is really streamed.
        unit = ratio / byte_grid
        blocked = sum(int(problem.nodes[n].resident_bytes * unit) * inside[n][k] for n in nodes)
        model.add(stream >= blocked - int(problem.capacity_bytes * unit) - 1)
        for n in nodes:
            if problem.nodes[n].working_bytes:
                least = int(min(problem.nodes[n].working_bytes, problem.capacity_bytes) * unit)
                model.add(stream >= blocked + least * inside[n][k] - int(problem.capacity_bytes * unit) - 1)
        read = sum(moved(problem.nodes[n].dram_bytes) * inside[n][k] for n in nodes)
        traffic: list[cp_model.LinearExprT] = [stream]
        traffic.append(sum(moved(problem.nodes[n].dma_total) * inside[n][k] for n in nodes))
        host: list[cp_model.LinearExprT] = []
        rings: list[cp_model.LinearExprT] = []
        for number, value in enumerate(problem.values):
            size = moved(value.size_bytes)
            consumers = sorted(set(value.consumers))
            if not size:
                continue
            if value.producer is None:
                comes = model.new_bool_var(f"in{number}.{k}")
                for consumer in consumers:
                    model.add(comes >= inside[consumer][k])
                host.append(size * comes)
                received.append(moved(value.host_bytes) * comes)
                continue
            if value.is_output:
                host.append(size * inside[value.producer][k])
            if consumers:
                leaves = model.new_bool_var(f"out{number}.{k}")
                for consumer in consumers:
                    model.add(leaves >= inside[value.producer][k] - inside[consumer][k])
                traffic.append(size * leaves)
                arrives = model.new_bool_var(f"ring{number}.{k}")
                for consumer in consumers:
                    model.add(arrives >= inside[consumer][k] - inside[value.producer][k])
                rings.append(size * arrives)
        traffic += host + rings
        dram_reads.append([stream, read, *(host * HOST_PASSES), *(rings * RING_PASSES)])
        if problem.exposed_ps_per_byte or problem.exposed_stream_ps_per_byte:
            per_unit = problem.exposed_ps_per_byte * byte_grid * 1000 // grid
            per_streamed = problem.exposed_stream_ps_per_byte * byte_grid * 1000 // grid
            busy: list[cp_model.LinearExprT] = [
                1000 * (problem.nodes[n].compute_ps // grid) * inside[n][k] for n in nodes
            ]
            busy += [per_streamed * stream, *(per_unit * term for term in traffic[1:])]
            model.add(sum(busy) <= 1000 * (bottleneck + 1))
        numerator, denominator = time_of(problem.core_bytes_per_s)
        model.add(denominator * sum(traffic) <= numerator * (bottleneck + 1))
    numerator, denominator = time_of(problem.host_bytes_per_s)
    model.add(denominator * sum(received) <= numerator * (bottleneck + 1))
    for first, end in zip(problem.chip_starts, (*problem.chip_starts[1:], problem.stages), strict=True):
        numerator, denominator = time_of(problem.dram_bytes_per_s)
        chip = [term for terms in dram_reads[first:end] for term in terms]
        model.add(denominator * sum(chip) <= numerator * (bottleneck + 1))
        if first:
            numerator, denominator = time_of(problem.link_bytes_per_s)
            crossing: list[cp_model.LinearExprT] = []
            for number, value in enumerate(problem.values):
                size = moved(value.size_bytes)
                if value.producer is None or not size or not value.consumers:
                    continue
                crosses = model.new_bool_var(f"link{number}.{first}")
                for consumer in sorted(set(value.consumers)):
                    model.add(crosses >= at_most[value.producer][first - 1] - at_most[consumer][first - 1])
                crossing.append(size * crosses)
            model.add(denominator * sum(crossing) <= numerator * (bottleneck + 1))
    for n in nodes:
        for k in stages:
            model.add_hint(at_most[n][k], start[n] <= k)
    model.add_hint(bottleneck, -(-best_objective // grid))
    model.minimize(bottleneck)

    class _Watch(cp_model.CpSolverSolutionCallback):
        def on_solution_callback(self) -> None:
            nonlocal best, best_objective
            found = [next(k for k in stages if self.boolean_value(at_most[n][k])) for n in nodes]
            objective = evaluate(problem, found).objective
            if objective < best_objective:
                best, best_objective = found, objective
            proven = max(bound, int(self.best_objective_bound) * grid)
            if progress is not None and not progress(best_objective, min(proven, best_objective)):
                self.stop_search()

    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = SEED
    solver.parameters.max_deterministic_time = work
    solver.parameters.relative_gap_limit = good_enough
    # The bound is mostly one of sums: the relaxation of all that is linear proves in an instant what search does not.
    solver.parameters.linearization_level = 2
    status = solver.solve(model, _Watch())
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE, cp_model.UNKNOWN):
        bound = max(bound, int(solver.best_objective_bound) * grid)
    return best, min(bound, best_objective)
