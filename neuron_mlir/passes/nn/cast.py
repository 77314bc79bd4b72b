"""`nn-cast`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from xdsl.dialects.builtin import BFloat16Type, Float16Type, LocationAttr, bf16, f16, f32
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Block, BlockArgument, Operation, SSAValue
from xdsl.rewriter import InsertPoint, Rewriter

from neuron_mlir.dialects import nn
from neuron_mlir.dialects.nn.base import is_float, type_of
from neuron_mlir.ir.functions import body_of
from neuron_mlir.ir.locations import replace
from neuron_mlir.passes.base import NeuronPass, Relation, option
from neuron_mlir.passes.nn._constants import ConstBuilder, erase_unused_constants, fold_operation, is_constant
from neuron_mlir.passes.nn._groups import outline, packing_of

if TYPE_CHECKING:
    from xdsl.context import Context
    from xdsl.dialects.builtin import ModuleOp

MODES = ("all", "all-fp16", "matmult", "matmult-bf16", "matmult-fp16")
"""Values of neuron-cc's `--fp32-cast`."""
_MOVES = (
    nn.ReshapeOp,
    nn.TransposeOp,
    nn.SliceOp,
    nn.ConcatOp,
    nn.GatherOp,
    nn.PadOp,
    nn.ExpandOp,
    nn.ResizeOp,
    nn.WhereOp,
    nn.MaxPoolOp,
    nn.UnfoldOp,
)
"""Ops whose result has the element type of their data."""


@dataclass(frozen=True)
class CastPass(NeuronPass):
    """Puts the casts to 16 bits where neuron-cc's `--fp32-cast` asks for them. Runs after `nn-fuse`.

    AWS documents the modes so (neuron-cc command line reference): `all` casts all FP32 operators to BF16, `all-fp16`
    to FP16; `matmult-bf16` and `matmult-fp16` cast only the operators that use the Matmult engine, and `matmult` does
    so to BF16 with FP16 for transposes on that engine. Our reading:

    - `matmult*`: the two operands of `nn.conv` and `nn.matmul` are cast inside their group; values between groups stay
      f32. Transposes move bits unchanged here, so `matmult` is `matmult-bf16`.
    - `all*`: values passed between groups are 16 bits wide too: cast at the end of a group, or by an `nn.cast` after a
      lone layer. Tables and other constants that are only moved (gather, concat, ..) are cast as well.
    - In every mode arithmetic inside a group stays f32, products accumulate in f32, biases and other constants of
      element-wise layers stay f32, and graph inputs and outputs keep their types. A lone contraction becomes a group,
      so that its casts are inside. Casts of weights become part of constants. A value that is 16 bits wide already is
      left alone. In f16 a mask such as -1e9 overflows to an infinity, which still masks.

    Before:

    ```mlir
    func.func @main(%x: tensor<2x8xf32>) -> tensor<2x3xf32> {
      %w = nn.weight "w" : tensor<8x4xf32>
      %v = nn.weight "v" : tensor<4x3xf32>
      %0 = nn.matmul %x, %w : (tensor<2x8xf32>, tensor<8x4xf32>) -> tensor<2x4xf32>
      %1 = nn.softmax %0 axis 1 : (tensor<2x4xf32>) -> tensor<2x4xf32>
      %2 = nn.matmul %1, %v : (tensor<2x4xf32>, tensor<4x3xf32>) -> tensor<2x3xf32>
      func.return %2 : tensor<2x3xf32>
    }
    ```

    After `nn-cast{mode=all}`:

    ```mlir
    func.func @main(%x: tensor<2x8xf32>) -> tensor<2x3xf32> {
      %w = nn.const {
        %f = nn.weight "w" : tensor<8x4xf32>
        %n = nn.cast %f : (tensor<8x4xf32>) -> tensor<8x4xbf16>
        nn.yield %n : tensor<8x4xbf16>
      } : tensor<8x4xbf16>
      %v = nn.const {
        %f = nn.weight "v" : tensor<4x3xf32>
        %n = nn.cast %f : (tensor<4x3xf32>) -> tensor<4x3xbf16>
        nn.yield %n : tensor<4x3xbf16>
      } : tensor<4x3xbf16>
      %0 = nn.fused "matmul" (%x, %w) {
      ^bb0(%ix: tensor<2x8xf32>, %iw: tensor<8x4xbf16>):
        %c = nn.cast %ix : (tensor<2x8xf32>) -> tensor<2x8xbf16>
        %p = nn.matmul %c, %iw : (tensor<2x8xbf16>, tensor<8x4xbf16>) -> tensor<2x4xf32>
        %r = nn.cast %p : (tensor<2x4xf32>) -> tensor<2x4xbf16>
        nn.yield %r : tensor<2x4xbf16>
      } : (tensor<2x8xf32>, tensor<8x4xbf16>) -> tensor<2x4xbf16>
      %1 = nn.softmax %0 axis 1 : (tensor<2x4xbf16>) -> tensor<2x4xf32>
      %2 = nn.cast %1 : (tensor<2x4xf32>) -> tensor<2x4xbf16>
      %3 = nn.fused "matmul" (%2, %v) {
      ^bb0(%ix: tensor<2x4xbf16>, %iw: tensor<4x3xbf16>):
        %p = nn.matmul %ix, %iw : (tensor<2x4xbf16>, tensor<4x3xbf16>) -> tensor<2x3xf32>
        nn.yield %p : tensor<2x3xf32>
      } : (tensor<2x4xbf16>, tensor<4x3xbf16>) -> tensor<2x3xf32>
      func.return %3 : tensor<2x3xf32>
    }
    ```
    """

    name = "nn-cast"
    summary = "cast to 16 bits at contractions and between groups, as neuron-cc's --fp32-cast says"
    relation: ClassVar[Relation] = Relation.CASTS
    statistics_help: ClassVar[dict[str, str]] = {
        "casts": "casts of values, inside groups and between them",
        "constants": "constants that were cast",
    }

    mode: str = option("all", "what to cast, as --fp32-cast of neuron-cc", choices=MODES)

    def casts_to(self) -> tuple[str, ...]:
        return (str(self.narrow),)

    @property
    def narrow(self) -> BFloat16Type | Float16Type:
        """The 16-bit type of the mode."""
        return f16 if self.mode.endswith("fp16") else bf16

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        for function in list(op.walk()):
            if isinstance(function, FuncOp) and function.body.blocks:
                _Caster(self, body_of(function), self.mode.startswith("all")).run()


class _Caster:
    """The rewrite of one function."""

    def __init__(self, owner: CastPass, block: Block, everywhere: bool) -> None:
        self.owner = owner
        self.narrow = owner.narrow
        self.block = block
        self.everywhere = everywhere
        self._constants: dict[SSAValue, SSAValue] = {}

    def run(self) -> None:
        outputs = [operand.type for operand in self._return().operands]
        for op in list(self.block.ops):
            if (folded := fold_operation(op)) is not None:
                replace(op, folded)
        if self.everywhere:
            for argument in self.block.args:
                self._cast_input(argument)
        for op in list(self.block.ops):
            self._layer(op)
        end = self._return()
        for i, expected in enumerate(outputs):
            if end.operands[i].type != expected:
                end.operands[i] = self._insert(end.operands[i], InsertPoint.before(end), end.location, widen=True)
        erase_unused_constants(self.block)

    def _return(self) -> Operation:
        end = self.block.last_op
        assert isinstance(end, ReturnOp)
        return end

    def _layer(self, op: Operation) -> None:
        if isinstance(op, nn.CONTRACTIONS):
            if not any(_is_f32(operand) for operand in op.operands[:2]) and not self._leaves(op.results[0]):
                return
            op = outline([*packing_of(op), op], op.name.removeprefix("nn."))
        if isinstance(op, nn.FusedOp):
            self._group(op)
        elif self.everywhere and isinstance(op, nn.NnOp) and not _packs(op):
            self._lone(op)

    # Values between groups --------------------------------------------------------------------------------------------

    def _leaves(self, value: SSAValue) -> bool:
        """Whether a value has to be narrow for what uses it."""
        return self.everywhere and _is_f32(value) and any(_takes(use.operation) for use in value.uses)

    def _cast_input(self, argument: BlockArgument) -> None:
        """A graph input is cast once, or inside the one contraction that uses it."""
        if not self._leaves(argument):
            return
        users = dict.fromkeys(use.operation for use in argument.uses)
        if len(users) == 1 and _only_contracted(argument, next(iter(users))):
            return
        self._replace_uses(argument, self._insert(argument, InsertPoint.at_start(self.block), argument.location))

    def _replace_uses(self, value: SSAValue, new: SSAValue) -> None:
        for use in list(value.uses):
            if _takes(use.operation) and use.operation is not new.owner:
                use.operation.operands[use.index] = new

    def _lone(self, op: nn.NnOp) -> None:
        """A layer outside of groups: what it moves and what it makes becomes narrow."""
        if isinstance(op, _MOVES):
            for i in _data_operands(op):
                operand = op.operands[i]
                if _is_f32(operand) and self._leaves(op.results[0]):
                    op.operands[i] = (
                        self._constant(operand)
                        if is_constant(operand)
                        else self._insert(operand, InsertPoint.before(op), op.location)
                    )
        self._harmonise(op)
        _refresh(op)
        result = op.results[0]
        if not self._leaves(result):
            return
        if isinstance(op, nn.CastOp) and not any(isinstance(use.operation, ReturnOp) for use in result.uses):
            Rewriter.replace_value_with_new_type(result, nn.CastOp.infer_result_type(op.type, self.narrow))
            return
        self._replace_uses(result, self._insert(result, InsertPoint.after(op), op.location))

    # Groups -----------------------------------------------------------------------------------------------------------

    def _group(self, op: nn.FusedOp) -> None:
        body = op.body.block
        for i, operand in enumerate(op.inputs):
            if body.args[i].type != operand.type:
                Rewriter.replace_value_with_new_type(body.args[i], operand.type)
        made: dict[SSAValue, SSAValue] = {}
        for inner in list(body.ops):
            if isinstance(inner, nn.CONTRACTIONS):
                for i in (0, 1):
                    if _is_f32(inner.operands[i]):
                        inner.operands[i] = self._contracted(op, inner, inner.operands[i], made)
            if isinstance(inner, nn.NnOp):
                self._harmonise(inner)
                _refresh(inner)
        end = body.last_op
        assert isinstance(end, nn.YieldOp)
        for i, result in enumerate(list(op.results)):
            if self._leaves(result):
                returned = any(isinstance(use.operation, ReturnOp) for use in result.uses)
                if returned:
                    self._replace_uses(result, self._insert(result, InsertPoint.after(op), op.location))
                else:
                    end.operands[i] = self._insert(end.operands[i], InsertPoint.before(end), op.location)
            if end.operands[i].type != result.type:
                Rewriter.replace_value_with_new_type(op.results[i], end.operands[i].type)

    def _contracted(self, op: nn.FusedOp, user: Operation, value: SSAValue, made: dict[SSAValue, SSAValue]) -> SSAValue:
        """The narrow version of a contraction's operand inside a group."""
        if value in made:
            return made[value]
        if isinstance(value, BlockArgument) and is_constant(op.inputs[value.index]):
            constant = self._constant(op.inputs[value.index])
            if all(_contracts(use.operation, use.index) for use in value.uses):
                op.operands[value.index] = constant
                narrow = Rewriter.replace_value_with_new_type(value, constant.type)
            else:
                narrow = op.body.block.insert_arg(constant.type, len(op.body.block.args))
                narrow.name_hint = value.name_hint
                op.operands = [*op.operands, constant]
        elif isinstance(value, BlockArgument):
            narrow = self._insert(value, InsertPoint.at_start(op.body.block), user.location)
        elif isinstance(value.owner, nn.UnfoldOp):
            # Copies are made of what is narrow already.
            unfold = value.owner
            unfold.operands[0] = self._contracted(op, unfold, unfold.x, made)
            _refresh(unfold)
            narrow = unfold.results[0]
        else:
            assert isinstance(value.owner, Operation)
            narrow = self._insert(value, InsertPoint.after(value.owner), user.location)
        made[value] = narrow
        return narrow

    # Pieces -----------------------------------------------------------------------------------------------------------

    def _insert(self, value: SSAValue, at: InsertPoint, location: LocationAttr, *, widen: bool = False) -> SSAValue:
        cast = nn.CastOp(value, f32 if widen else self.narrow)
        cast.location = location
        cast.result.name_hint = value.name_hint
        Rewriter.insert_op(cast, at)
        self.owner.count("casts")
        return cast.result

    def _constant(self, value: SSAValue) -> SSAValue:
        """A constant cast to 16 bits, made once and placed behind the constant itself."""
        if value not in self._constants:
            builder = ConstBuilder()
            inside = builder.add(nn.CastOp(builder.take(value), self.narrow))
            source = value.owner
            assert isinstance(source, Operation)
            const = builder.finish(inside, [source.location])
            const.results[0].name_hint = value.name_hint
            Rewriter.insert_op(const, InsertPoint.after(source))
            self.owner.count("constants")
            self._constants[value] = const.results[0]
        return self._constants[value]

    def _harmonise(self, op: Operation) -> None:
        """Ops that want one element type get f32 where their operands have come to differ."""
        if not isinstance(op, (nn.ConcatOp, nn.WhereOp)):
            return
        indices = _data_operands(op)
        if len({type_of(op.operands[i]).element_type for i in indices}) == 1:
            return
        for i in indices:
            if is_float(type_of(op.operands[i]).element_type) and not _is_f32(op.operands[i]):
                op.operands[i] = self._insert(op.operands[i], InsertPoint.before(op), op.location, widen=True)


def _is_f32(value: SSAValue) -> bool:
    return type_of(value).element_type == f32


def _takes(op: Operation) -> bool:
    """Whether a use is a layer's: the function's outputs keep their type, and a cast there is says what it wants."""
    return not isinstance(op, (ReturnOp, nn.CastOp))


def _contracts(op: Operation, index: int) -> bool:
    """Whether a use is that of a contraction's operand, through its packing too."""
    return isinstance(op, nn.UnfoldOp) or (isinstance(op, nn.CONTRACTIONS) and index < 2)


def _packs(op: Operation) -> bool:
    """Whether an op is the unfolding of a convolution that comes later and takes it into its group."""
    return isinstance(op, nn.UnfoldOp) and any(op in packing_of(use.operation) for use in op.result.uses)


def _only_contracted(value: SSAValue, user: Operation) -> bool:
    """Whether a layer or group uses a value as operand of contractions only."""
    indices = [i for i, operand in enumerate(user.operands) if operand is value]
    if isinstance(user, nn.FusedOp):
        arguments = [user.body.block.args[i] for i in indices]
        uses = [use for argument in arguments for use in argument.uses]
        return all(_contracts(use.operation, use.index) or isinstance(use.operation, nn.CastOp) for use in uses)
    return all(_contracts(user, i) for i in indices)


def _data_operands(op: Operation) -> list[int]:
    """The operands whose element type the result takes."""
    if isinstance(op, nn.WhereOp):
        return [1, 2]
    if isinstance(op, nn.GatherOp):
        return [0]
    return list(range(len(op.operands)))


def _refresh(op: nn.NnOp) -> None:
    """Give the result the type that follows from the operands now."""
    expected = op.infer()
    if expected != op.type:
        Rewriter.replace_value_with_new_type(op.results[0], expected)
