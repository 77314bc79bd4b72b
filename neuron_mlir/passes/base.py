"""What every pass of this package is made of: options with help, statistics, and what it promises to preserve."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import types
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar, Union, cast, get_args, get_origin

from xdsl.passes import ModulePass
from xdsl.utils.arg_spec import ArgSpec, ParameterListType, ParameterType

from neuron_mlir.errors import NeuronError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from xdsl.context import Context
    from xdsl.dialects.builtin import ModuleOp

T = TypeVar("T")
Values = dict[str, "NDArray[Any]"]
"""Inputs or outputs of a module, by name."""

StatisticValue = int | float | str


class Relation(Enum):
    """What a pass promises about the values a module computes before and after it."""

    EXACT = "exact"
    """The same bits."""
    REASSOCIATES = "reassociates"
    """The same real-number function; floating-point sums may be ordered or factored differently."""
    CASTS = "casts"
    """Rounds values to narrower types; the pass says which in `casts_to`."""
    RESHAPES_INTERFACE = "reshapes-interface"
    """Changes the inputs or outputs; `split_inputs` and `join_outputs` map one interface to the other."""

    def __str__(self) -> str:
        return self.value


def option(default: T, help: str, *, choices: tuple[T, ...] | None = None) -> T:
    """A field of a pass that can be set as `pass{name=value}`.

    Args:
        default: its value when not given.
        help: one line for `--help-pass`, with the unit.
        choices: the values allowed; all of the type when None.
    """
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class OptionInfo:
    """One option of a pass, as shown to a user."""

    name: str
    """As typed, with dashes."""
    type: str
    default: object
    help: str
    choices: tuple[object, ...] | None = None


@dataclass(frozen=True)
class NeuronPass(ModulePass):
    """A pass in one file.

    A subclass is a frozen dataclass with the class variables below, options declared by `option`, an `apply`, and a
    docstring that says what it does, why, and what it does not do, followed by an example that the tests execute::

        Before:

        ```mlir
        ...
        ```

        After `my-pass{depth=2}`:

        ```mlir
        ...
        ```

    The pipeline after `After` is what the example runs; the bare pass when there is none.
    """

    summary: ClassVar[str] = ""
    """One line for `--list-passes`."""
    relation: ClassVar[Relation] = Relation.EXACT
    """What the pass preserves; read by `--validate-each`."""
    interface_relation: ClassVar[Relation] = Relation.EXACT
    """Of a `RESHAPES_INTERFACE` pass: what holds after its map, `EXACT` or `REASSOCIATES`."""
    statistics_help: ClassVar[Mapping[str, str]] = {}
    """The statistics the pass counts, by name, with what each means."""

    @abstractmethod
    def apply(self, ctx: Context, op: ModuleOp) -> None:
        """Rewrite the module in place.

        Raises:
            NeuronError: when the module, as the user wrote it, cannot be transformed.
        """

    def weaken(self, relation: Relation) -> None:
        """Say that this run preserves less than the pass declares."""
        object.__setattr__(self, "relation", relation)

    # Statistics -------------------------------------------------------------------------------------------------------

    @property
    def statistics(self) -> dict[str, StatisticValue]:
        """Every declared statistic and its value so far, in the order of declaration; 0 when never counted."""
        recorded = self._recorded()
        return {name: recorded.get(name, 0) for name in self.statistics_help}

    def count(self, name: str, n: int = 1) -> None:
        """Add `n` to a declared statistic."""
        value = self._recorded(name).get(name, 0)
        assert isinstance(value, (int, float)), f"statistic '{name}' of {self.name} holds text"
        self._recorded()[name] = value + n

    def record(self, name: str, value: StatisticValue) -> None:
        """Set a declared statistic."""
        self._recorded(name)[name] = value

    def _recorded(self, name: str | None = None) -> dict[str, StatisticValue]:
        if name is not None and name not in self.statistics_help:
            raise ValueError(f"pass {self.name} declares no statistic '{name}'")
        store: dict[str, StatisticValue] | None = self.__dict__.get("_statistics")
        if store is None:
            store = {}
            # The instance is frozen so that options do not change; what it counted is not an option.
            object.__setattr__(self, "_statistics", store)
        return store

    # What is preserved ------------------------------------------------------------------------------------------------

    def casts_to(self) -> tuple[str, ...]:
        """The element types (`bf16`, `f16`, ..) a `CASTS` pass rounds to with these options."""
        return ()

    def split_inputs(self, inputs: Values) -> list[Values]:
        """Inputs of the module after the pass, as the runs of the module before it that they stand for."""
        return [inputs]

    def join_outputs(self, outputs: list[Values]) -> Values:
        """Outputs of the runs of `split_inputs`, as the outputs the module after the pass must give."""
        return outputs[0]

    # Options ----------------------------------------------------------------------------------------------------------

    @classmethod
    def options(cls) -> tuple[OptionInfo, ...]:
        """The options in the order of declaration."""
        hints = _hints(cls)
        return tuple(
            OptionInfo(
                name=field.name.replace("_", "-"),
                type=_type_text(hints[field.name]),
                default=None if field.default is dataclasses.MISSING else field.default,
                help=cast(str, field.metadata.get("help", "")),
                choices=cast("tuple[object, ...] | None", field.metadata.get("choices")),
            )
            for field in dataclasses.fields(cls)
        )

    @classmethod
    def from_spec(cls, spec: ArgSpec) -> Self:
        """An instance with the options of a spec.

        Besides upstream's rules a float option takes an integer, a bool option may stand bare (`pass{flag}`), a string
        option takes a number, and names take dashes or underscores.

        Raises:
            NeuronError: for an unknown option, a value of the wrong type, or one that is not among the choices.
        """
        given = spec.normalize_parameter_names().parameters
        hints = _hints(cls)
        fields = {field.name: field for field in dataclasses.fields(cls)}
        unknown = [name for name in given if name not in fields]
        if unknown:
            raise cls._unknown_option(unknown[0])
        return cls(**{name: cls._convert(fields[name], hints[name], value) for name, value in given.items()})

    def spec(self, *, include_default: bool = False) -> ArgSpec:
        """The spec that `from_spec` turns into an equal instance; options at their default are left out."""
        parameters: dict[str, ParameterListType] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value == field.default and type(value) is type(field.default) and not include_default:
                continue
            if value is None:
                continue
            parameters[field.name.replace("_", "-")] = (
                cast(ParameterListType, value) if isinstance(value, tuple) else (cast(ParameterType, value),)
            )
        return ArgSpec(self.name, parameters)

    def __str__(self) -> str:
        return format_spec(self.spec())

    @classmethod
    def _convert(cls, field: dataclasses.Field[Any], hint: Any, value: ParameterListType) -> object:
        name = field.name.replace("_", "-")
        try:
            converted = _coerce(value, hint)
        except ValueError:
            given = ",".join(str(v) for v in value) or "nothing"
            raise NeuronError(
                f"option '{name}' of pass '{cls.name}' takes {_type_text(hint)}, not {given}",
                advice=f"neuron-opt --help-pass {cls.name}",
            ) from None
        choices = cast("tuple[object, ...] | None", field.metadata.get("choices"))
        if choices is not None and converted not in choices:
            allowed = ", ".join(str(choice) for choice in choices)
            raise NeuronError(f"option '{name}' of pass '{cls.name}' is one of {allowed}, not {converted}")
        return converted

    @classmethod
    def _unknown_option(cls, name: str) -> NeuronError:
        names = [info.name for info in cls.options()]
        return NeuronError(
            f"pass '{cls.name}' has no option '{name.replace('_', '-')}'",
            advice=f"one of {', '.join(names)}" if names else f"'{cls.name}' without options: it has none",
        )


@dataclass(frozen=True)
class NeuronPipeline(NeuronPass):
    """A named list of passes that can stand where a pass can: `-p 'neuron{cores=4}'`.

    A subclass declares options and returns from `expand` the text of the passes it stands for. Tools run the expansion,
    so that timing, printing and validation see single passes; under `xdsl-opt` it runs as one pass.
    """

    @abstractmethod
    def expand(self) -> str:
        """The plain pass list, as it can be typed after `-p`."""

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        from xdsl.universe import Universe
        from xdsl.utils.arg_spec import parse_pipeline

        # All that is installed, because a pipeline may use xDSL's own passes and a plugin's pipeline the plugin's.
        table = Universe.get_multiverse().all_passes
        for spec in parse_pipeline(self.expand()):
            table[spec.name]().from_spec(spec).apply(ctx, op)


_BARE = re.compile(r"(?![-+]?[0-9]+(\.[0-9]*)?$)[A-Za-z0-9_-]+\Z")


def format_spec(spec: ArgSpec) -> str:
    """A spec as a user would type it: strings stay bare where the pipeline syntax allows."""
    if not spec.parameters:
        return spec.name
    options: list[str] = []
    for name, values in spec.parameters.items():
        options.append(f"{name}={','.join(_format_value(value) for value in values)}" if values else name)
    return f"{spec.name}{{{' '.join(options)}}}"


def _format_value(value: ParameterType) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        # The pipeline syntax wants a point before an exponent.
        text = repr(value)
        return text if "." in text else text.replace("e", ".0e")
    if not isinstance(value, str):
        return str(value)
    if _BARE.match(value) and value not in ("true", "false"):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _hints(cls: type[NeuronPass]) -> dict[str, Any]:
    """The resolved types of the options. The class's own module gives the names that annotations use."""
    hints: dict[str, Any] = {}
    names = {field.name for field in dataclasses.fields(cls)}
    for base in reversed(cls.__mro__):
        scope = vars(sys.modules[base.__module__])
        for name, annotation in inspect.get_annotations(base).items():
            if name in names:
                # Only the options are resolved: class variables may name types imported for checking only.
                hints[name] = eval(annotation, scope) if isinstance(annotation, str) else annotation
    return hints


def _coerce(value: ParameterListType, hint: Any) -> object:
    """A parsed option value as the declared type; ValueError when it is not of that type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Union or origin is types.UnionType:
        for choice in arguments:
            try:
                return _coerce(value, choice)
            except ValueError:
                continue
        raise ValueError
    if origin is tuple:
        return tuple(_coerce((item,), arguments[0]) for item in value)
    if hint is bool and not value:
        return True
    if len(value) != 1:
        raise ValueError
    item = value[0]
    if hint is types.NoneType:
        if item == "none":
            return None
        raise ValueError
    if origin is Literal:
        if item in arguments:
            return item
        raise ValueError
    return _coerce_scalar(item, hint)


def _coerce_scalar(item: ParameterType, hint: Any) -> object:
    if hint is bool:
        if isinstance(item, bool):
            return item
    elif hint is int:
        if isinstance(item, int) and not isinstance(item, bool):
            return item
    elif hint is float:
        if not isinstance(item, bool):
            # `1e-5` has no point, so the pipeline syntax reads it as a name.
            return float(item)
    elif hint is str:
        return str(item).lower() if isinstance(item, bool) else str(item)
    else:
        raise TypeError(f"options of type {hint} are not supported")
    raise ValueError


def _type_text(hint: Any) -> str:
    """A type as a user reads it: `int`, `int or auto`, `list of int`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Union or origin is types.UnionType:
        return " or ".join(_type_text(choice) for choice in arguments)
    if origin is tuple:
        return f"list of {_type_text(arguments[0])}"
    if origin is Literal:
        return " or ".join(str(choice) for choice in arguments)
    if hint is types.NoneType:
        return "none"
    return {int: "int", float: "float", bool: "bool", str: "string"}.get(hint, str(hint))
