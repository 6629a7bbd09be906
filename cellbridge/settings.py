"""Settings: YAML and `--set a.b=c` into frozen pydantic models, with "did you mean" for a key that is not known."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from cellbridge.errors import ConfigError, did_you_mean

Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""What both NumPy's and PyTorch's generators take."""


class Section(BaseModel):
    """A frozen group of settings in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _the_rest_of_a_section_stays(cls, value: Any, info: ValidationInfo) -> Any:
        """Leave what a group's own default sets, and the given part does not, as it is: not as any such group would have it."""
        default = cls.model_fields[str(info.field_name)].default
        if isinstance(value, Mapping) and isinstance(default, Section):
            return _over(default.model_dump(exclude_unset=True), value)
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
        if {int, float} & kinds and bool not in kinds:
            values = value if isinstance(value, list | tuple) else [value]
            if any(isinstance(one, bool) for one in values):
                raise ValueError("is true or false, expected a number")
        return value


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return what lies above, and beneath it what it leaves out, at any depth."""
    both = {key: _over(below[key], above[key]) for key in above if _nested(below.get(key), above[key])}
    return {**below, **above, **both}


def _nested(*values: Any) -> bool:
    return all(isinstance(value, Mapping) for value in values)


def _kinds(annotation: Any) -> set[type]:
    """Return the types that an annotation names, at any depth, those of its literals included."""
    parts = get_args(annotation)
    if not parts:
        return {annotation if isinstance(annotation, type) else type(annotation)}
    return set().union(*(_kinds(part) for part in parts))


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def load(
    model: type[ConfigT],
    *,
    file: Path | None = None,
    overrides: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> ConfigT:
    """Build a configuration from defaults, a YAML file, `a.b=c` overrides and options, each winning over the one before.

    Parameters
    ----------
    overrides : `a.b=c`, whose right side is read as YAML.
    options : dotted key → value, taken as it is, so that a compound called `null` stays a string.

    Raises
    ------
    ConfigError : the file is missing or not a mapping, a key is not known, or a value does not fit.
    """
    values: dict[str, Any] = {}
    written: dict[str, Any] = {}
    """The same with every value as it was typed, for messages: YAML reads 007 as 7."""
    if file is not None:
        values, written = _read_yaml(file, _Loader), _read_yaml(file, _TextLoader)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise ConfigError(f'--set "{override}": expected KEY=VALUE, such as training.steps=500.')
        _assign(values, key, _parse_scalar(text, _Loader))
        _assign(written, key, _parse_scalar(text, _TextLoader))
    for key, value in (options or {}).items():
        _assign(values, key, value)
        _assign(written, key, value)
    return validate(model, values, written=written, source=str(file) if file else "--set")


def given_keys(file: Path | None, overrides: Sequence[str]) -> set[str]:
    """Return the first part of every key that a YAML file and `a.b=c` overrides set.

    Raises
    ------
    ConfigError : the file is missing or not a mapping.
    """
    written = {} if file is None else _read_yaml(file, _Loader)
    return {str(key) for key in written} | {override.partition("=")[0].partition(".")[0] for override in overrides}


def validate(
    model: type[ConfigT], values: dict[str, Any], *, source: str, written: Mapping[str, Any] | None = None
) -> ConfigT:
    """Validate a plain mapping.

    Parameters
    ----------
    source : stands at the front of the error message.
    written : the same mapping with every value as it was typed, for the message.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        # An unknown key comes first: it is often the misspelt name of the one that is missing.
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        path = [str(part) for part in first["loc"]]
        where = ".".join(part for part in path if part != "[key]") or "(top)"
        if first["type"] == "extra_forbidden":
            raise ConfigError(
                f'{source}: unknown key "{where}".{did_you_mean(path[-1], _keys_at(model, path[:-1]))}'
            ) from None
        if first["type"] == "missing":
            raise ConfigError(
                f'{source}: "{where}" is required. Give it in the file, or as --set {where}=VALUE.'
            ) from None
        message = first["msg"].removeprefix("Value error, ")
        if not path:
            raise ConfigError(f"{source}: {message}.") from None
        text = path[-2] if path[-1] == "[key]" else _at(written, first["loc"])
        remedies = {"string_type": f' Quote it: "{text}".', "tuple_type": f" Write a list: [{text}]."}
        remedy = remedies.get(first["type"], "") if isinstance(text, str) else ""
        raise ConfigError(f'{source}: "{where}" = {first["input"]!r}: {message}.{remedy}') from None


def _at(values: Any, path: Sequence[int | str]) -> Any:
    """Return what lies at a path of keys and positions; pydantic's names of a union's branches are passed over."""
    for part in path:
        if (isinstance(values, dict) and part in values) or (
            isinstance(values, list) and isinstance(part, int) and part < len(values)
        ):
            values = values[part]  # type: ignore[index]
    return values


def dump(config: BaseModel) -> str:
    """Return the configuration as YAML that `load` reads back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def binding(config: BaseModel, *, exclude: set[str]) -> dict[str, str]:
    """Return the settings that decide a result, one `settings.KEY` each, for a checkpoint to be held against.

    Parameters
    ----------
    exclude : keys that do not decide it (a device), or that are held apart (the training settings, hashed inputs).
    """
    values = config.model_dump(mode="json", exclude=exclude)
    return {f"settings.{key}": json.dumps(value, sort_keys=True) for key, value in values.items()}


class _NoRepeats:
    """Refuses a key that stands twice in one mapping, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f'the key "{key.value}" stands twice', key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)  # type: ignore[misc]


class _Loader(_NoRepeats, yaml.SafeLoader):
    """Plain YAML."""


class _TextLoader(_NoRepeats, yaml.BaseLoader):
    """Plain YAML, every value the text that was typed."""


YamlLoader = type[_Loader] | type[_TextLoader]


def _read_yaml(file: Path, loader: YamlLoader) -> dict[str, Any]:
    try:
        values = yaml.load(file.read_text(encoding="utf-8"), Loader=loader)
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such configuration file. Check the path given to --config.") from None
    except (OSError, UnicodeDecodeError) as error:
        remedy = " Save it as UTF-8 text." if isinstance(error, UnicodeDecodeError) else ""
        raise ConfigError(f"{file}: cannot be read ({error}).{remedy}") from None
    except yaml.YAMLError as error:
        detail = " ".join(str(error).split()).replace('"<unicode string>", ', "")  # the file is named in front
        raise ConfigError(
            f"{file}: not plain YAML ({detail}). Only mappings with each key once, lists, strings and numbers are read."
        ) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: holds a {type(values).__name__}, expected `key: value` lines.")
    return values


def _parse_scalar(text: str, loader: YamlLoader) -> Any:
    try:
        return yaml.load(text, Loader=loader)
    except yaml.YAMLError:
        return text


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    node = values
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f'"{key}": "{parent}" holds a single value and has no key "{last}".')
        node = child
    node[last] = value


def _keys_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    node: Any = model
    for part in path:
        if part.isdecimal():  # a position in a list of sections
            continue
        field = getattr(node, "model_fields", {}).get(part)
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        node = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
    return list(getattr(node, "model_fields", {}))


def settings(model: type[BaseModel], prefix: str = "") -> list[tuple[str, str, str]]:
    """Return (dotted key, default, what it is) of every setting, sections opened, in the order of the code."""
    rows: list[tuple[str, str, str]] = []
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            changed = field.default.model_dump(mode="json") if isinstance(field.default, BaseModel) else {}
            inner = settings(section, f"{prefix}{name}.")
            given = {f"{prefix}{name}.{key}": json.dumps(value) for key, value in changed.items()}
            rows += [(key, given.get(key, default), text) for key, default, text in inner]
            continue
        default = (
            "required" if field.is_required() else json.dumps(field.get_default(call_default_factory=True), default=str)
        )
        rows.append((prefix + name, default, " ".join((field.description or "").split())))
    return rows
