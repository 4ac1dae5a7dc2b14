"""Read a YAML text into a frozen pydantic model, or say all that is wrong with it at once, with line numbers."""

import difflib
import json
import re
from collections.abc import Hashable, Sequence
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from common.errors import ConfigError, list_of_faults

ModelT = TypeVar("ModelT", bound=BaseModel)
Location = tuple[str | int, ...]


class Settings(BaseModel):
    """Base of everything an operator writes: frozen, no unknown keys, no infinite numbers, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class _Loader(yaml.SafeLoader):
    """Safe YAML with two traps closed: `1e-3` is a number, and a key given twice is a fault."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            key = str(key_node.value)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is given twice, first on line {seen[key]}", key_node.start_mark
                )
            seen[key] = line
        return super().construct_mapping(node, deep)


# YAML 1.1 reads `1e-3` (no dot, or no sign in the exponent) as text; YAML 1.2 and every reader expect a number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def parse_settings(text: str, model: type[ModelT], *, origin: str) -> ModelT:
    """Read a YAML text as a model.

    Args:
        text: The whole document.
        model: The model that the document must fit.
        origin: What the reader knows the text as, such as a file name; begins every message.

    Raises:
        ConfigError: All faults of the document, each with its line, what was found and what to write instead.
    """
    node, values = _read_yaml(text, origin=origin)
    if not isinstance(values, dict):
        found = "nothing" if values is None else type(values).__name__
        fault = f"found {found}, expected settings of the form `name: value`; begin from the commented example"
        raise ConfigError(list_of_faults(origin, [fault]))
    try:
        # Through JSON, since strict validation then still takes a list for a tuple and a text for a path.
        as_json = json.dumps(values, default=str)
    except (TypeError, ValueError):  # JSON has no names that are dates, and nothing that holds itself
        fault = "a name is a date or a list, or a setting holds itself; write plain `name: value`"
        raise ConfigError(list_of_faults(origin, [fault])) from None
    try:
        return model.model_validate_json(as_json)
    except ValidationError as error:
        faults = [_fault(details, node, model) for details in error.errors(include_url=False)]
        raise ConfigError(list_of_faults(origin, faults)) from None


def _read_yaml(text: str, *, origin: str) -> tuple[yaml.Node | None, object]:
    """The document as YAML's nodes, which know their lines, and as plain values."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            return node, None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        fault = _syntax_fault(error)
    except ValueError as error:  # such as the 30th of February, which YAML takes for a date
        fault = f"a value is not what YAML takes it for ({error}); write texts between quotes"
    except RecursionError:
        fault = "nested too deeply; begin from the commented example"
    raise ConfigError(list_of_faults(origin, [fault]))


def _syntax_fault(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    advice = "mend this line (indent with spaces, quote texts that hold ': ' or '#')"
    return f"{where}not readable as YAML: {problem}; {advice}"


def _fault(details: ErrorDetails, node: yaml.Node | None, model: type[BaseModel]) -> str:
    location = tuple(part for part in details["loc"] if not _is_union_branch(part, node, details["loc"]))
    path = ".".join(str(part) for part in location)
    where = f"line {_line_of(location, node)}: " if node is not None else ""
    match details["type"]:
        case "extra_forbidden":
            known = _known_names(model, location[:-1])
            close = difflib.get_close_matches(str(location[-1]), known, n=1)
            advice = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(sorted(known))}"
            return f"{where}unknown setting {path!r}; {advice}"
        case "missing":
            return f"{where}setting {path!r} is missing; add it{_described(model, location)}"
        case "value_error":
            problem = details["msg"].removeprefix("Value error, ")
            return f"{where}{path + ': ' if path else ''}{problem}"
        case _:
            problem = details["msg"][0].lower() + details["msg"][1:]
            return f"{where}{path}: found {_shown(details['input'])}, {problem}{_described(model, location)}"


def _is_union_branch(part: str | int, node: yaml.Node | None, location: Sequence[str | int]) -> bool:
    """Whether a part of pydantic's location names a branch of a union instead of a key of the document."""
    return isinstance(part, str) and part != location[-1] and not _holds_key(node, part)


def _holds_key(node: yaml.Node | None, key: str) -> bool:
    if isinstance(node, yaml.MappingNode):
        return any(str(k.value) == key or _holds_key(v, key) for k, v in node.value)
    if isinstance(node, yaml.SequenceNode):
        return any(_holds_key(child, key) for child in node.value)
    return False


def _line_of(location: Location, node: yaml.Node | None) -> int:
    """The line of the deepest part of the location that the document holds; 1 is the first."""
    assert node is not None
    line = node.start_mark.line
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if str(k.value) == str(part)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line
        else:
            break
    return line + 1


def _model_at(model: type[BaseModel], location: Location) -> type[BaseModel] | None:
    for part in location:
        if isinstance(part, int):  # a place in a list of models
            continue
        field = model.model_fields.get(part)
        annotation = None if field is None else field.annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        inner = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if inner is None:
            return None
        model = inner
    return model


def _known_names(model: type[BaseModel], location: Location) -> list[str]:
    inner = _model_at(model, location)
    return [] if inner is None else list(inner.model_fields)


def _described(model: type[BaseModel], location: Location) -> str:
    inner = _model_at(model, location[:-1])
    field = None if inner is None or not location else inner.model_fields.get(str(location[-1]))
    return "" if field is None or not field.description else f" ({field.description})"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
