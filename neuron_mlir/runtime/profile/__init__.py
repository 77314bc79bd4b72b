"""What `neuron-profile` shows of a program: a traced run, made into data, a page and a Perfetto trace.

- `capture`: run the program, choose what to look at, trace it.
- `timeline`: who did what when, and who waited for whom.
- `memory`: what was in SBUF and PSUM when.
- `decisions`: what the compiler decided, and why, as far as IR and artifact say.
- `data`: all of it as one JSON object.
- `page`, `perfetto`: the two ways to look at it.

Docs: docs/profile.md.
"""
