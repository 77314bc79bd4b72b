"""The simulated machine and the interpreter of every level of the IR."""
