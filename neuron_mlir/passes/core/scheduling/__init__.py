"""The parts of `core-schedule`: code as a tree of statements (`tree`), which accesses meet (`conflicts`), what must
wait for what (`dependences`), how often each stream has signalled by then (`counts`), streams between stages
(`rings`), and the new code (`emit`).
"""
