"""`nn-batch`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.utils.exceptions import VerifyException

from neuron_mlir.dialects.nn.base import type_of
from neuron_mlir.errors import NeuronError
from neuron_mlir.ir.functions import body_of, input_names, output_names
from neuron_mlir.passes.base import NeuronPass, Relation, Values, option
from neuron_mlir.passes.nn._constants import erase_unused_constants

if TYPE_CHECKING:
    from xdsl.context import Context
    from xdsl.dialects.builtin import ModuleOp


@dataclass(frozen=True)
class BatchPass(NeuronPass):
    """Makes the network take N requests' data as one request.

    The first dimension of the first input is the model's batch B; every input with as many rows gets N * B. From there
    the batch is followed through the graph: types become wider; a constant with the batch's own rows is repeated N
    times (one that broadcasts is not); a layer that works along the batch axis within a request, such as a slice of its
    rows, gets the axis split in two for it. Inputs that have no such first dimension are shared by all N.

    A batch of N gives what N runs give, one behind the other along the batch axis of each output. All N are there at
    once, so that lowering reads a weight once for all of them, layer by layer.

    Unlike `--batch-size` of the importer, which changes the ONNX model's input shapes and its shape constants, this
    pass follows what the graph means: it can say which layer is in the way, takes a module from any source, and batches
    what a literal shape in the model would forbid. It goes before `nn-fuse`. A layer that mixes what belongs to
    different requests is an error that names it.

    Before:

    ```mlir
    func.func @main(%x: tensor<1x4xf32> {nn.name = "x"}) -> (tensor<4xf32> {nn.name = "y"}) {
      %w = nn.weight "w" : tensor<4x4xf32>
      %p = nn.weight "p" : tensor<4xf32>
      %0 = nn.matmul %x, %w : (tensor<1x4xf32>, tensor<4x4xf32>) -> tensor<1x4xf32>
      %1 = nn.reshape %0 : (tensor<1x4xf32>) -> tensor<4xf32>
      %2 = nn.add %1, %p : tensor<4xf32>, tensor<4xf32>
      func.return %2 : tensor<4xf32>
    }
    ```

    After `nn-batch{size=2}`:

    ```mlir
    func.func @main(%x: tensor<2x4xf32> {nn.name = "x"}) -> (tensor<8xf32> {nn.name = "y"}) {
      %w = nn.weight "w" : tensor<4x4xf32>
      %pp = nn.const {
        %p_1 = nn.weight "p" : tensor<4xf32>
        %c = nn.concat %p_1, %p_1 axis 0 : (tensor<4xf32>, tensor<4xf32>) -> tensor<8xf32>
        nn.yield %c : tensor<8xf32>
      } : tensor<8xf32>
      %0 = nn.matmul %x, %w : (tensor<2x4xf32>, tensor<4x4xf32>) -> tensor<2x4xf32>
      %1 = nn.reshape %0 : (tensor<2x4xf32>) -> tensor<8xf32>
      %2 = nn.add %1, %pp : tensor<8xf32>, tensor<8xf32>
      func.return %2 : tensor<8xf32>
    }
    ```
    """

    name = "nn-batch"
    summary: ClassVar[str] = "take the data of several requests as one, so that each weight read serves all of them"
    relation: ClassVar[Relation] = Relation.RESHAPES_INTERFACE
    interface_relation: ClassVar[Relation] = Relation.REASSOCIATES
    statistics_help: ClassVar[dict[str, str]] = {
        "batch": "rows of the first input, before the pass times size",
        "batched": "values whose type became wider",
        "tiled": "values that are the same for all requests and were repeated",
        "reshapes": "reshapes added to split, merge or move the batch axis",
    }

    size: int = option(1, "how many requests' data one request holds; multiplies the batch the module has")

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        from neuron_mlir.passes.nn._batching import Batcher

        if self.size < 1:
            raise NeuronError(
                f"option 'size' of pass '{self.name}' is at least 1", needed="1 or more", available=self.size
            )
        function = _function_of(op)
        rows = _rows(function)
        self.record("batch", rows * self.size)
        if self.size == 1:
            self._remember({}, {})
            return
        batcher = Batcher(self.size, self.count)
        inputs: dict[str, int] = {}
        for name, argument in zip(input_names(function), list(function.body.block.args), strict=True):
            shape = type_of(argument).get_shape()
            if shape and shape[0] == rows:
                batcher.widen(argument, 0)
                inputs[name] = 0
        batcher.block(function.body.block)
        erase_unused_constants(function.body.block)
        end = function.body.block.last_op
        assert isinstance(end, ReturnOp)
        outputs: dict[str, int] = {}
        for name, value in zip(output_names(function), end.operands, strict=True):
            if value in batcher.axes:
                outputs[name] = batcher.axes[value]
        function.update_function_type()
        self._remember(inputs, outputs)
        self._check(function)

    def _check(self, function: FuncOp) -> None:
        """The rules keep types and parameters together; a layer where they do not is a hole in the rules."""
        for layer in function.walk():
            try:
                layer.verify_()
            except VerifyException as error:
                raise NeuronError(f"cannot batch {self.size} requests: {error}", op=layer) from error

    def _remember(self, inputs: dict[str, int], outputs: dict[str, int]) -> None:
        # The map between the interfaces, for validation; not an option, so the instance is not changed by it.
        object.__setattr__(self, "_inputs", inputs)
        object.__setattr__(self, "_outputs", outputs)

    @property
    def batch_axes(self) -> tuple[dict[str, int], dict[str, int]]:
        """Of the inputs and of the outputs that have become wider, the axis; known after `apply`."""
        return dict(self.__dict__.get("_inputs", {})), dict(self.__dict__.get("_outputs", {}))

    def split_inputs(self, inputs: Values) -> list[Values]:
        """The parts of a batch, one for each run of the module before the pass."""
        import numpy as np

        batched: dict[str, int] = self.__dict__.get("_inputs", {})
        parts = {
            name: np.split(array, self.size, axis=batched[name]) for name, array in inputs.items() if name in batched
        }
        return [
            {name: parts[name][run] if name in parts else array for name, array in inputs.items()}
            for run in range(self.size)
        ]

    def join_outputs(self, outputs: list[Values]) -> Values:
        """Outputs of those runs, one behind the other."""
        import numpy as np

        batched: dict[str, int] = self.__dict__.get("_outputs", {})
        return {
            name: np.concatenate([run[name] for run in outputs], axis=batched[name]) if name in batched else first
            for name, first in outputs[0].items()
        }


def _function_of(module: ModuleOp) -> FuncOp:
    """The one function, of one block."""
    functions = [op for op in module.ops if isinstance(op, FuncOp) and not op.is_declaration]
    if len(functions) == 1:
        body_of(functions[0])
        return functions[0]
    if any(op.name == "pipe.program" for op in module.ops):
        raise NeuronError("the module is staged already", advice="nn-batch before pipe-stage")
    raise NeuronError(f"nn-batch takes one function, the module has {len(functions)}", op=module)


def _rows(function: FuncOp) -> int:
    """The batch of the module: the first dimension of the first input that has any."""
    for argument in function.body.block.args:
        shape = type_of(argument).get_shape()
        if shape:
            return shape[0]
    raise NeuronError("there is no input with a batch dimension", op=function, advice="no nn-batch")
