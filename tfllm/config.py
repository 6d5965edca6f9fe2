"""YAML files to typed, frozen settings and back.

Unknown keys are errors that name the line and the nearest known key. Values are validated strictly:
`epochs: "3"` is refused, because a string where a number belongs is likely a mistake.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from tfllm.errors import SettingError, did_you_mean

if TYPE_CHECKING:
    SettingsType = type(BaseModel)
else:

    class SettingsType(type(BaseModel)):
        """The type of classes of settings: a call with wrong fields raises SettingError.

        pydantic calls a class's validator, not the class, where settings hold other settings.
        """

        def __call__(cls, /, **fields):
            known = [field.alias or name for name, field in cls.model_fields.items()]
            unknown = [name for name in fields if name not in known]
            if unknown and cls.model_config.get("extra") == "forbid":
                hint = did_you_mean(unknown[0], known)
                raise SettingError(f"{cls.__name__}: unknown key '{unknown[0]}'. {hint}")
            try:
                return super().__call__(**fields)
            except ValidationError as error:
                raise SettingError(_explain(error, fields, cls, cls.__name__, {})) from None


class Settings(BaseModel, metaclass=SettingsType):  # type: ignore[metaclass]
    """The base of all settings: frozen, strict, no unknown keys.

    Raises:
        SettingError: A field is unknown, missing or wrong; it names the nearest known one.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )


S = TypeVar("S", bound=BaseModel)
# How pydantic names a branch of a union, as in `literal['balanced']` and `dict[str,float]`.
BRANCH = re.compile(r"^[a-z-]+\[.*\]$")
Lines = Mapping[tuple[str, ...], int]


def load(path: str | Path, kind: type[S], overrides: Sequence[str] = ()) -> S:
    """Load a YAML file as settings.

    Args:
        path: The file.
        kind: The class of settings.
        overrides: Texts `dotted.key=value`, applied in order.

    Returns:
        An instance of `kind`.

    Raises:
        SettingError: It names the file, the line and the nearest known key.
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
    """Validate plain data, with overrides applied, as settings.

    Args:
        data: A mapping, as read from YAML or JSON.
        kind: The class of settings.
        source: What errors call the data, such as a file's name.
        lines: The line in `source` of every key's path.
        overrides: Texts `dotted.key=value`, applied in order.

    Returns:
        An instance of `kind`.

    Raises:
        SettingError: It names the line, or the override, that is wrong.
    """
    if not isinstance(data, Mapping):
        raise SettingError(f"{source}: expected a mapping of settings, not {type(data).__name__}.")
    merged = apply_overrides(data, overrides)
    try:
        # Strict validation of JSON accepts a list for a tuple and a string for a path, no more.
        return kind.model_validate_json(json.dumps(merged))
    except ValidationError as error:
        if overrides and (at_fault := _overrides_at_fault(error, data, merged, kind, overrides)):
            source, lines = " ".join(f"--set {text}" for text in at_fault), {}
        raise SettingError(_explain(error, merged, kind, source, lines or {})) from None
    except TypeError as error:
        raise SettingError(f"{source}: {error}.") from None


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Copy plain data with values set.

    Args:
        data: A mapping, as read from YAML or JSON.
        overrides: Texts `dotted.key=value`, applied in order.

    Raises:
        SettingError: A text is no such override.
    """
    merged = dict(data)
    for override in overrides:
        keys, value = parse_override(override)
        merged = set_value(merged, keys, value, override)
    return merged


def build_from_fields(kind: type[S], names: Mapping[str, str], **fields: Any) -> S:
    """Build settings from values that do not come from a settings file.

    Args:
        kind: The class of settings.
        names: What errors call a field, where that is not its own name.
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
    """Format settings as YAML, in the order of their declaration, without unset optional keys.

    A null stays where null is not the default, so that loading gives the same settings.
    """
    data = _without_default_nulls(settings, json.loads(settings.model_dump_json()))
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, default_flow_style=False)


def read_yaml(path: str | Path) -> tuple[dict[str, Any], Lines]:
    """Read a YAML mapping, and the line of every key in it.

    Raises:
        SettingError: The file cannot be read, or is no such mapping.
    """
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
        raise SettingError(f"{path}: expected a mapping of settings, not {type(data).__name__}.")
    lines: dict[tuple[str, ...], int] = {}
    _collect_lines(node, (), lines, str(path))
    return data, lines


def parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    """Parse `train.epochs=1` into `(("train", "epochs"), 1)`; the value is YAML.

    Raises:
        SettingError: The text is no such override.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise SettingError(f"--set '{text}': write it as key=value, for example train.epochs=1.")
    try:
        return tuple(key.strip().split(".")), yaml.load(value, Loader=_Loader)
    except yaml.YAMLError:
        raise SettingError(f"--set '{text}': '{value}' is not a YAML value.") from None


def set_value(
    data: dict[str, Any], keys: tuple[str, ...], value: Any, option: str
) -> dict[str, Any]:
    """Copy plain data with one value set; missing mappings are created.

    Args:
        data: A mapping, as read from YAML or JSON.
        keys: The path of keys.
        value: The value.
        option: What the error calls the override.

    Raises:
        SettingError: A key on the path holds something else than a mapping.
    """
    head, rest = keys[0], keys[1:]
    inner = data.get(head)
    if rest:
        if inner is not None and not isinstance(inner, dict):
            raise SettingError(f"--set '{option}': '{head}' is a value and has no parts.")
        value = set_value(inner or {}, rest, value, option)
    return {**data, head: value}


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 2e-5 as a number (YAML 1.1 reads it as a text) and 2026-01-31 as a text
    (there it is a date, which no setting is)."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
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
        key_path = (*path, str(key.value))
        if key_path in lines:
            raise SettingError(
                f"{source}:{key.start_mark.line + 1}: '{'.'.join(key_path)}' appears twice "
                f"(first in line {lines[key_path]}). Keep one."
            )
        lines[key_path] = key.start_mark.line + 1
        _collect_lines(value, key_path, lines, source)


def _without_default_nulls(value: Any, data: Any) -> Any:
    """The JSON `data` of a value without those fields that are null by default."""
    if isinstance(value, BaseModel):
        fields = {field.alias or name: (name, field) for name, field in _fields_of(value)}
        result = {}
        for key, inner in data.items():
            name, field = fields.get(key, (key, None))
            default = ... if field is None else field.get_default(call_default_factory=True)
            if inner is not None or default is not None:  # an undeclared key has no default
                result[key] = _without_default_nulls(getattr(value, name), inner)
        return result
    if isinstance(value, Mapping):
        return {
            key: _without_default_nulls(inner, data[key])
            for key, inner in value.items()
            if key in data
        }
    if isinstance(value, list | tuple):
        return [
            _without_default_nulls(inner, other) for inner, other in zip(value, data, strict=True)
        ]
    return data


def _fields_of(settings: BaseModel) -> Any:
    return type(settings).model_fields.items()


def _overrides_at_fault(
    error: ValidationError, data: Any, merged: Any, kind: type[BaseModel], overrides: Sequence[str]
) -> list[str]:
    """The overrides that caused the first problem; none where the file itself did."""
    path = tuple(_user_path(tuple(str(part) for part in _problem(error)["loc"]), merged))
    related = []
    for text in overrides:
        keys, _ = parse_override(text)
        if keys[: len(path)] == path or path[: len(keys)] == keys:
            related.append((len(path) >= len(keys), text))
    exact = [text for is_exact, text in related if is_exact]
    if exact:
        return exact[-1:]  # the last one counts
    try:
        kind.model_validate_json(json.dumps(data))
    except ValidationError as without_overrides:
        if without_overrides.errors()[0]["loc"] == error.errors()[0]["loc"]:
            return []
    return [text for _, text in related]


def _explain(
    error: ValidationError, data: Any, kind: type[BaseModel], source: str, lines: Lines
) -> str:
    """Explain the first problem in one line: file:line: key: what is wrong, nearest known key."""
    problem = _problem(error)
    path = tuple(str(part) for part in problem["loc"])
    keys = tuple(_user_path(path, data))
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
    value = problem.get("input")
    is_plain = not isinstance(value, dict) and problem["type"] != "value_error"
    suffix = f" Found: {value!r}." if is_plain else ""
    return f"{where}: {f'{name}: ' if name else ''}{message}.{suffix}".replace("..", ".")


def _user_path(path: tuple[str, ...], data: Any) -> list[str]:
    """The path as the user wrote it, without the branch names that pydantic adds for unions."""
    keys = []
    for index, part in enumerate(path):
        if isinstance(data, Mapping) and part not in data and index < len(path) - 1:
            continue
        if BRANCH.search(part):
            continue
        keys.append(part)
        data = data.get(part) if isinstance(data, Mapping) else None
    return keys


def _problem(error: ValidationError) -> Any:
    """The first problem or, of a union, that of the branch that matched the furthest."""
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
        if inner := _settings_class(part):
            return inner
    return None
