"""For all tests: random examples are the same in every run, so that a failure is of the change that was made."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
