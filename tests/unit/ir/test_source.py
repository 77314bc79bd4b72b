"""Where ops stand in their source."""

from __future__ import annotations

from xdsl.dialects import func

from neuron_mlir.dialects.nn import ReluOp
from neuron_mlir.errors import location_text
from neuron_mlir.ir.source import SourceParser
from neuron_mlir.runtime.modules import make_context

TEXT = """// ä comment
func.func @main(%x: tensor<2xf32>) -> tensor<2xf32> {
  %a = nn.relu %x : tensor<2xf32>
  %b = nn.relu %a : tensor<2xf32> loc("second")
  func.return %b : tensor<2xf32>
}
"""


def test_places() -> None:
    parser = SourceParser(make_context(), TEXT, "net.mlir", line_offset=10)
    module = parser.parse_module()
    main = next(op for op in module.walk() if isinstance(op, func.FuncOp))
    relus = [op for op in module.walk() if isinstance(op, ReluOp)]
    assert parser.locate(main) == "net.mlir:12:1"
    assert [parser.place(op) for op in relus] == [(13, 3), (14, 3)]
    assert parser.locate(relus[0].clone()) is None


def test_marks_only_what_has_no_location() -> None:
    parser = SourceParser(make_context(), TEXT, "net.mlir")
    module = parser.parse_module()
    parser.mark()
    relus = [op for op in module.walk() if isinstance(op, ReluOp)]
    assert [location_text(op.location) for op in relus] == ["net.mlir:3:3", "second"]
