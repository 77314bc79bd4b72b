"""Offsets for buffers with live ranges: two alive at the same time must not share bytes, and the peak should be low.

This is *dynamic storage allocation* (Garey and Johnson, SR2; NP-hard). Greedy placement in a few orders, the best one
improved by moving what stands at the peak to the front, comes close on the programs of networks (Pisarchyk and Lee,
"Efficient Memory Management for Deep Neural Net Inference", arXiv:2001.03288, compare such orders). Where it misses,
an exact search packs from the bottom up (`search`), first with buffers that fit end to end joined (`joining`). The
bound is the most bytes alive at one time.

`python -m neuron_mlir.solvers.memory_plan FILE.csv --capacity N` plans instances in the public CSV form.
"""

from neuron_mlir.solvers.memory_plan.model import Buffer, Plan, check_plan, lower_bound
from neuron_mlir.solvers.memory_plan.planner import plan, plan_without_sharing

__all__ = ["Buffer", "Plan", "check_plan", "lower_bound", "plan", "plan_without_sharing"]
