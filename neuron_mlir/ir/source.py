"""From text to IR: xDSL's parser, which also knows where each op stands, and turns what it trips over into messages."""

from __future__ import annotations

import struct
from bisect import bisect_right
from functools import cached_property
from itertools import accumulate

from xdsl.context import Context
from xdsl.dialects.builtin import FileLineColLoc, IntAttr, ModuleOp, StringAttr, UnknownLoc
from xdsl.ir import Operation
from xdsl.parser import Parser

from neuron_mlir.errors import NeuronError
from neuron_mlir.ir.strings import check_strings


class SourceParser(Parser):
    """The parser of a module's text; `line_offset` is the number of lines in front of it in its file."""

    def __init__(self, ctx: Context, source: str, name: str, line_offset: int = 0) -> None:
        check_strings(source, name)
        super().__init__(ctx, source, name)
        self.name = name
        self._line_offset = line_offset
        self._source = source
        self._positions: dict[Operation, int] = {}

    def parse_operation(self) -> Operation:
        position = self.pos
        try:
            op = super().parse_operation()
        except (struct.error, OverflowError):
            # A list of integers or a float is packed into bytes as it is parsed.
            self.raise_error("a number in front of this does not fit its type")
        self._positions[op] = position
        return op

    def parse_module(self, allow_implicit_module: bool = True) -> ModuleOp:
        """The module.

        Raises:
            NeuronError: regions or attributes are nested so deeply that Python's stack does not hold them.
            ParseError: the text is not a module.
        """
        try:
            return super().parse_module(allow_implicit_module)
        except RecursionError as error:
            raise NeuronError(f"{self.name}: regions or attributes are nested too deeply") from error

    def place(self, op: Operation) -> tuple[int, int] | None:
        """Line and column, from 1, at which an op begins; None for one that a pass has made."""
        position = self._positions.get(op)
        if position is None:
            return None
        line = bisect_right(self._line_starts, position)
        return line + self._line_offset, position - self._line_starts[line - 1] + 1

    @cached_property
    def _line_starts(self) -> list[int]:
        return list(accumulate((len(line) + 1 for line in self._source.split("\n")), initial=0))

    def locate(self, op: Operation) -> str | None:
        """`file:line:column` of an op; None for one that a pass has made."""
        place = self.place(op)
        return None if place is None else f"{self.name}:{place[0]}:{place[1]}"

    def mark(self) -> None:
        """Give every op that has no location the place where it stands."""
        for op in self._positions:
            place = self.place(op)
            if place is not None and isinstance(op.location, UnknownLoc):
                op.location = FileLineColLoc(StringAttr(self.name), IntAttr(place[0]), IntAttr(place[1]))
