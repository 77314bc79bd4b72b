"""What the runtime answers with when something fails: AWS's documented return codes.

Numbers and meanings are those of the public header `src/libnrt/include/nrt/nrt_status.h` of aws-neuron/aws-neuron-sdk;
the older `neuron-rtd` had the same numbers under names that begin with `NERR_`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from neuron_mlir.errors import NeuronError


class Status(IntEnum):
    """A return code of the Neuron runtime. What the simulated one never returns is left out."""

    NRT_SUCCESS = 0
    NRT_FAILURE = 1
    """No more specific code fits."""
    NRT_INVALID = 2
    """A broken artifact, or a setting that means nothing."""
    NRT_INVALID_HANDLE = 3
    """A model that was unloaded."""
    NRT_RESOURCE = 4
    """Device memory does not suffice."""
    NRT_TIMEOUT = 5
    NRT_QUEUE_FULL = 7
    """As many requests are under way as the queue takes."""
    NRT_LOAD_NOT_ENOUGH_NC = 9
    """Too few cores are free."""
    NRT_UNSUPPORTED_NEFF_VERSION = 10
    NRT_FAIL_HOST_MEM_ALLOC = 11
    """The host's memory does not suffice to simulate the program."""
    NRT_CLOSED = 14
    """The instance was closed."""
    NRT_EXEC_BAD_INPUT = 1002
    NRT_EXEC_COMPLETED_WITH_NUM_ERR = 1003
    """There is a NaN among the outputs (only where the caller asked for that check)."""
    NRT_EXEC_COMPLETED_WITH_ERR = 1004
    """The program failed: a deadlock, or code that does not run."""
    NRT_EXEC_OOB = 1006
    """An index among the inputs is outside of the table it selects from."""


class NeuronRuntimeError(NeuronError):
    """An error of loading or running a model, with the return code in `status`. The other arguments are
    `NeuronError`'s.
    """

    def __init__(self, status: Status, message: str, **details: Any) -> None:
        super().__init__(message, **details)
        self.status = status

    @classmethod
    def of(cls, error: NeuronError, status: Status) -> NeuronRuntimeError:
        """The same error with a return code; one that has its own keeps it."""
        if isinstance(error, cls):
            return error
        found = cls(
            status,
            error.message,
            op=error.op,
            location=error.location,
            resource=error.resource,
            needed=error.needed,
            available=error.available,
            advice=error.advice,
        )
        found.op_text = error.op_text
        return found
