"""`neuron-opt`: read a module or a model, run passes, print the result. All of `xdsl-opt`, and more.

See `docs/tools.md`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import IO, ClassVar

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation
from xdsl.passes import PassPipeline
from xdsl.utils.exceptions import DiagnosticException
from xdsl.xdsl_opt_main import xDSLOptMain

from neuron_mlir.errors import NeuronError
from neuron_mlir.ir.source import SourceParser
from neuron_mlir.runtime.flags import read_io_config
from neuron_mlir.tools._files import STANDARD_OUTPUT, DeferredFile, check_writable, write_json
from neuron_mlir.tools._instrument import Instrumentation, add_arguments, reproducer_arguments
from neuron_mlir.tools._passes import Step, find_pass, format_steps, help_pass, list_passes, parse_steps
from neuron_mlir.tools._report import describe, run_tool
from neuron_mlir.tools._timing import Timer


class NeuronOptMain(xDSLOptMain):
    """`xdsl-opt` with the instrumentation of MLIR's drivers; the constructor is upstream's."""

    version_format: ClassVar[str] = "neuron-opt on xdsl {xdsl_version}"

    timer: Timer
    steps: list[Step]
    instrumentation: Instrumentation
    stage: str = ""
    """What is going on, for messages; empty when it needs no saying."""

    def register_all_arguments(self, arg_parser: argparse.ArgumentParser) -> None:
        super().register_all_arguments(arg_parser)
        arg_parser.prog = "neuron-opt"
        listings = arg_parser.add_argument_group("information")
        listings.add_argument("--list-passes", action="store_true", help="list all passes, each with a line on it")
        listings.add_argument("--help-pass", metavar="PASS", help="explain a pass: options, statistics, example")
        listings.add_argument(
            "--print-pipeline", action="store_true", help="print -p as a plain list of passes, and stop"
        )
        models = arg_parser.add_argument_group("models (.onnx)")
        models.add_argument(
            "--io-config", metavar="FILE|JSON", help="shapes of inputs, where the model leaves them open"
        )
        models.add_argument("--batch-size", type=int, metavar="B", help="the batch to import the model with")
        add_arguments(arg_parser)

    def register_all_frontends(self) -> None:
        super().register_all_frontends()
        self.available_frontends["mlir"] = self._parse_mlir
        self.available_frontends["onnx"] = self._import_onnx

    def _parse_mlir(self, stream: IO[bytes]) -> ModuleOp:
        for name, instead in (("io_config", "its types say it"), ("batch_size", "-p 'nn-batch{size=N}'")):
            if getattr(self.args, name) is not None:
                raise NeuronError(
                    f"--{name.replace('_', '-')} is for models (.onnx); this is a module (.mlir)", advice=instead
                )
        self._parser = SourceParser(self.ctx, stream.read().decode(), self.get_input_name(), self._line_offset)
        return self._parser.parse_module(not self.args.no_implicit_module)

    _parser: SourceParser | None = None
    _line_offset = 0

    def locate(self, op: Operation) -> str | None:
        """`file:line:column` of an op of the source; None for one that a pass has made."""
        return None if self._parser is None else self._parser.locate(op)

    def _import_onnx(self, stream: IO[bytes]) -> ModuleOp:
        from neuron_mlir.frontends.onnx import import_model

        if self.args.split_input_file:
            raise NeuronError("--split-input-file is for .mlir files, not for .onnx")
        io_config = None if self.args.io_config is None else read_io_config(self.args.io_config)
        if self.args.input_file is not None:
            return import_model(self.args.input_file, io_config=io_config, batch_size=self.args.batch_size)
        raise NeuronError("an ONNX model is read from a file, not from standard input", advice="neuron-opt MODEL.onnx")

    # Set-up -----------------------------------------------------------------------------------------------------------

    def setup_pipeline(self) -> None:
        self.timer = Timer("total")
        if self.args.run_reproducer:
            self._take_reproducer_arguments()
        self.steps = parse_steps(self.available_passes, self.args.passes)
        # Upstream's callback verifies, times and prints as upstream's flags say; it is all that is wanted of it here.
        self.args.passes = ""
        super().setup_pipeline()
        assert self.pipeline.callback is not None
        self.instrumentation = Instrumentation(self.args, self.steps, self.pipeline.callback, self.timer)
        self.pipeline = PassPipeline(tuple(step.instance for step in self.steps), self.instrumentation.callback)
        if self.args.json == STANDARD_OUTPUT and self.args.output_file is None and not self.args.list_passes:
            raise NeuronError(
                "the module and --json - would both go to standard output", advice="-o FILE.mlir, or -o /dev/null"
            )
        for path in (self.args.output_file, self.args.json, self.args.crash_reproducer):
            if path is not None:
                check_writable(path)

    def _take_reproducer_arguments(self) -> None:
        if self.args.input_file is None:
            raise NeuronError("--run-reproducer needs a file")
        parser = argparse.ArgumentParser(prog="the reproducer's configuration", exit_on_error=False)
        parser.add_argument("-p", dest="passes")
        parser.add_argument("--allow-unregistered-dialect", action="store_true")
        parser.add_argument("--validate-each", action="store_true")
        parser.add_argument("--seed", type=int)
        recorded, unknown = parser.parse_known_args(reproducer_arguments(self.args.input_file))
        if unknown:
            raise NeuronError(
                f"the configuration of reproducer '{self.args.input_file}' has unknown arguments {unknown}"
            )
        for name, value in vars(recorded).items():
            # What is given on the command line comes first.
            if value is not None and not getattr(self.args, name):
                setattr(self.args, name, value)
        self.ctx.allow_unregistered = self.args.allow_unregistered_dialect

    # Steps of a run ---------------------------------------------------------------------------------------------------

    def prepare_input(self) -> tuple[list[tuple[IO[bytes], int]], str]:
        try:
            return super().prepare_input()
        except ValueError as error:
            raise NeuronError(
                f"cannot tell what kind of file '{self.args.input_file}' is: {error}",
                advice="--frontend mlir or --frontend onnx",
            ) from error

    def prepare_output(self) -> IO[str]:
        if self.args.output_file is None:
            return sys.stdout
        self._output = DeferredFile(self.args.output_file)
        return self._output

    _output: DeferredFile | None = None

    def parse_chunk(self, chunk: IO[bytes], file_extension: str, start_offset: int = 0) -> ModuleOp | None:
        self.stage = ""
        self._line_offset = start_offset
        self.instrumentation.start_module()
        start = time.perf_counter()
        module = super().parse_chunk(chunk, file_extension, start_offset)
        self.timer.add("import" if file_extension == "onnx" else "parse", time.perf_counter() - start)
        return module

    def apply_passes(self, prog: ModuleOp) -> None:
        try:
            super().apply_passes(prog)
        except Exception as error:
            running = self.instrumentation.running
            self.stage = "" if running is None else f"pass '{running.name}'"
            message = describe(error, self.stage, self.locate) or f"{type(error).__name__}: {error}"
            self.instrumentation.failed(prog, error, message)
            if isinstance(error, NeuronError) and self.args.verify_diagnostics:
                # Upstream prints diagnostics and goes on to the next chunk; a pass's refusal is one.
                raise DiagnosticException(error.line) from error
            raise

    def output_resulting_program(self, prog: ModuleOp) -> str:
        self.stage = "printing"
        start = time.perf_counter()
        text = super().output_resulting_program(prog)
        self.timer.add("print", time.perf_counter() - start)
        return text

    def run(self) -> None:
        if self._print_information():
            return
        try:
            with self.timer.measure():
                super().run()
            if self._output is not None:
                self._output.commit()
        finally:
            self._print_reports()

    def _print_information(self) -> bool:
        """Answer a question about passes; whether there was one."""
        if self.args.list_passes:
            text, data = list_passes(self.available_passes)
            if self.args.json != STANDARD_OUTPUT:
                print(text)
            if self.args.json is not None:
                write_json(self.args.json, {"passes": data})
        elif self.args.help_pass is not None:
            print(help_pass(self.args.help_pass, find_pass(self.available_passes, self.args.help_pass)))
        elif self.args.print_pipeline:
            print(format_steps(self.steps))
        else:
            return False
        return True

    def _print_reports(self) -> None:
        sys.stdout.flush()
        if self.args.timing:
            print(self.timer.render(), file=sys.stderr)
        if self.args.statistics:
            print(self.instrumentation.render_statistics(), file=sys.stderr)
        if self.args.json is not None:
            write_json(
                self.args.json,
                {"timing": self.timer.as_json(), "statistics": self.instrumentation.statistics()},
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool on `argv` (default: the command line) and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # A list, because the constructor may fail before there is a tool to ask for its stage.
    tools: list[NeuronOptMain] = []

    def body() -> None:
        tools.append(NeuronOptMain("Neuron MLIR modular optimizer driver", arguments))
        tools[0].run()

    return run_tool(
        body,
        show_traceback="--traceback" in arguments,
        stage=lambda: tools[0].stage if tools else "",
        locate=lambda op: tools[0].locate(op) if tools else None,
    )


if __name__ == "__main__":
    sys.exit(main())
