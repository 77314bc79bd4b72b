"""Optimisation problems of the compiler as pure functions over plain data: no IR, nothing of ours but `machine`'s data
and errors.

Every answer carries a `Certificate`. Searches are bounded by work, not by the clock, so that the same problem gives
the same answer.
"""
