"""YAML files to typed, frozen objects and back.

Unknown keys are errors that name the nearest known key and the line. Values are checked strictly:
`epochs: "3"` is refused, because a text where a number belongs is a mistake worth seeing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from tfllm.errors import SettingError, did_you_mean


class Settings(BaseModel):
    """Base of every recipe and profile part: frozen, strict, no unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )


S = TypeVar("S", bound=BaseModel)
# How pydantic names a branch of a union, as in `literal['balanced']` and `dict[str,float]`.
BRANCH = re.compile(r"^[a-z-]+\[.*\]$")
Lines = Mapping[tuple[str, ...], int]


def load(path: str | Path, kind: type[S], overrides: Sequence[str] = ()) -> S:
    """Reads a YAML file into `kind`. `overrides` are `dotted.key=value` texts, applied in order.

    Raises SettingError naming file, line and the nearest known key.
    """
    data, lines = read_yaml(path)
    return build(data, kind, source=str(path), lines=lines, overrides=overrides)


def build(
    data: Any,
    kind: type[S],
    source: str = "settings",
    lines: Lines | None = None,
    overrides: Sequence[str] = (),
) -> S:
    """Checks plain data, with `overrides` applied, against `kind`.

    `lines` maps a key's path to its line in `source`. Raises SettingError, which names the line or
    the override that is wrong.
    """
    if not isinstance(data, Mapping):
        raise SettingError(
            f"{source}: expected a mapping of settings, found {type(data).__name__}."
        )
    whole = overridden(data, overrides)
    try:
        # Through JSON: there a list may fill a tuple and a text a path, and nothing else bends.
        return kind.model_validate_json(json.dumps(whole))
    except ValidationError as error:
        if overrides and (at_fault := _overrides_at_fault(error, data, whole, kind, overrides)):
            source, lines = " ".join(f"--set {text}" for text in at_fault), {}
        raise SettingError(_explain(error, whole, kind, source, lines or {})) from None
    except TypeError as error:
        raise SettingError(f"{source}: {error}.") from None


def overridden(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of plain data with the values of `dotted.key=value` texts in it. SettingError."""
    whole = dict(data)
    for override in overrides:
        keys, value = parse_override(override)
        whole = replaced(whole, keys, value, override)
    return whole


def made(kind: type[S], names: Mapping[str, str], **fields: Any) -> S:
    """Makes `kind` of values that did not come from a file of ours.

    Args:
        kind: The class of settings.
        names: What an error calls a field; a field's own name where it has none.
        **fields: The values.

    Raises:
        SettingError: A value is wrong; it names the first one.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        problem = error.errors()[0]
        message = problem["msg"].removeprefix("Value error, ")
        if not problem["loc"]:
            raise SettingError(f"{message}.") from None
        name = str(problem["loc"][0])
        message = message[:1].lower() + message[1:]
        raise SettingError(f"{names.get(name, name)} {problem['input']}: {message}.") from None


def dump(settings: BaseModel) -> str:
    """The settings as YAML, in the order of their declaration, unset optional parts left out.

    A null stays where null is not the default, so that reading gives the same settings.
    """
    data = _said(settings, json.loads(settings.model_dump_json()))
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, default_flow_style=False)


def read_yaml(path: str | Path) -> tuple[dict[str, Any], Lines]:
    """A YAML mapping and the line of every key in it."""
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise SettingError(f"There is no file '{path}'. Check the path.") from None
    except IsADirectoryError:
        raise SettingError(f"'{path}' is a directory; give the YAML file in it.") from None
    except UnicodeDecodeError as error:
        raise SettingError(f"{path}: not UTF-8 text (byte {error.start}).") from None
    try:
        node = yaml.compose(text, Loader=_Loader)
        data = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise SettingError(f"{path}{line}: not YAML: {getattr(error, 'problem', error)}.") from None
    if data is None:
        raise SettingError(f"{path}: the file is empty.")
    if not isinstance(data, dict):
        raise SettingError(f"{path}: expected a mapping of settings, found {type(data).__name__}.")
    lines: dict[tuple[str, ...], int] = {}
    _collect_lines(node, (), lines, str(path))
    return data, lines


def parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    """`train.epochs=1` to `(("train", "epochs"), 1)`; the value is YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise SettingError(f"--set '{text}': write it as key=value, for example train.epochs=1.")
    try:
        return tuple(key.strip().split(".")), yaml.load(value, Loader=_Loader)
    except yaml.YAMLError:
        raise SettingError(f"--set '{text}': '{value}' is not a YAML value.") from None


def replaced(
    data: dict[str, Any], keys: tuple[str, ...], value: Any, option: str
) -> dict[str, Any]:
    """A copy of `data` with the value at the path `keys` replaced; missing parts are made."""
    head, rest = keys[0], keys[1:]
    inner = data.get(head)
    if rest:
        if inner is not None and not isinstance(inner, dict):
            raise SettingError(f"--set '{option}': '{head}' is a value and has no parts.")
        value = replaced(inner or {}, rest, value, option)
    return {**data, head: value}


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 2e-5 as a number (YAML 1.1 reads it as a text) and 2026-01-31 as a text
    (there it is a date, which no setting is)."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _collect_lines(node: Any, path: tuple[str, ...], lines: dict, source: str) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        here = (*path, str(key.value))
        if here in lines:
            raise SettingError(
                f"{source}:{key.start_mark.line + 1}: '{'.'.join(here)}' stands twice "
                f"(first in line {lines[here]}). Keep one."
            )
        lines[here] = key.start_mark.line + 1
        _collect_lines(value, here, lines, source)


def _said(value: Any, data: Any) -> Any:
    """The JSON `data` of a value without those fields that are null by default."""
    if isinstance(value, BaseModel):
        fields = {field.alias or name: (name, field) for name, field in _fields_of(value)}
        kept = {}
        for key, inner in data.items():
            name, field = fields.get(key, (key, None))
            default = ... if field is None else field.get_default(call_default_factory=True)
            if inner is not None or default is not None:  # an undeclared key has no default
                kept[key] = _said(getattr(value, name), inner)
        return kept
    if isinstance(value, Mapping):
        return {key: _said(inner, data[key]) for key, inner in value.items() if key in data}
    if isinstance(value, list | tuple):
        return [_said(inner, other) for inner, other in zip(value, data, strict=True)]
    return data


def _fields_of(settings: BaseModel) -> Any:
    return type(settings).model_fields.items()


def _overrides_at_fault(
    error: ValidationError, data: Any, whole: Any, kind: type[BaseModel], overrides: Sequence[str]
) -> list[str]:
    """The overrides that the first problem is about; none where it is the file's own."""
    path = tuple(_written(tuple(str(part) for part in _problem(error)["loc"]), whole))
    found = []
    for text in overrides:
        keys, _ = parse_override(text)
        if keys[: len(path)] == path or path[: len(keys)] == keys:
            found.append((len(path) >= len(keys), text))
    exact = [text for is_exact, text in found if is_exact]
    if exact:
        return exact[-1:]  # the last one counts
    try:
        kind.model_validate_json(json.dumps(data))
    except ValidationError as before:
        if before.errors()[0]["loc"] == error.errors()[0]["loc"]:
            return []
    return [text for _, text in found]


def _explain(
    error: ValidationError, data: Any, kind: type[BaseModel], source: str, lines: Lines
) -> str:
    """One line for the first problem: file:line: key: what is wrong. Nearest known key."""
    problem = _problem(error)
    path = tuple(str(part) for part in problem["loc"])
    keys = tuple(_written(path, data))
    line = next((lines[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in lines), None)
    where = f"{source}:{line}" if line else source
    name = ".".join(keys)
    if problem["type"] == "extra_forbidden":
        known = _fields_at(kind, path[:-1])
        return f"{where}: unknown key '{name}'. {did_you_mean(path[-1], known)}"
    if problem["type"] == "missing":
        return f"{where}: the key '{name}' is missing."
    if problem["type"].startswith("union_tag"):
        context = problem["ctx"]
        key = f"{name}.{context['discriminator'].strip(chr(39))}"
        if "tag" not in context:
            return f"{where}: the key '{key}' is missing."
        kinds = [kind.strip("'") for kind in context["expected_tags"].split(", ")]
        return f"{where}: {key}: unknown '{context['tag']}'. {did_you_mean(context['tag'], kinds)}"
    message = problem["msg"].removeprefix("Value error, ")
    found = problem.get("input")
    shown = (
        "" if isinstance(found, dict) or problem["type"] == "value_error" else f" Found: {found!r}."
    )
    return f"{where}: {name or 'settings'}: {message}.{shown}".replace("..", ".")


def _written(path: tuple[str, ...], data: Any) -> list[str]:
    """The path as the user wrote it: without the branch names that pydantic puts in for unions."""
    keys = []
    for number, part in enumerate(path):
        if isinstance(data, Mapping) and part not in data and number < len(path) - 1:
            continue
        if BRANCH.search(part):
            continue
        keys.append(part)
        data = data.get(part) if isinstance(data, Mapping) else None
    return keys


def _problem(error: ValidationError) -> Any:
    """The first problem or, of a union, that of the branch that came the farthest."""
    errors = error.errors()
    first = errors[0]
    branch = first["loc"][-1] if first["loc"] else ""
    if not BRANCH.search(str(branch)):
        return first
    above = first["loc"][:-1]
    same = [each for each in errors if each["loc"][: len(above)] == above]
    return max(same, key=lambda each: len(each["loc"]))


def _fields_at(kind: Any, path: tuple[str, ...]) -> list[str]:
    """The field names of the settings class that the key path leads to."""
    for part in path:
        field = getattr(kind, "model_fields", {}).get(part)
        if field is None:
            continue  # a union's branch name, which is no key
        kind = _settings_class(field.annotation)
    return list(getattr(kind, "model_fields", {}))


def _settings_class(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for part in getattr(annotation, "__args__", ()):
        if found := _settings_class(part):
            return found
    return None
