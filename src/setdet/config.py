"""The configuration machinery: frozen trees of documented fields, to and from YAML, with `a.b=c` overrides."""

import difflib
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from setdet.errors import ConfigError


class Config(BaseModel):
    """Base of every configuration: immutable, unknown keys refused with a suggestion."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @classmethod
    def from_dict(cls, values: dict[str, Any], *, source: str = "config") -> Self:
        """Validates `values`; `source` names them in messages.

        Raises:
            ConfigError: a key is unknown (the nearest known one is suggested) or a value does not fit.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(_explain(cls, error, source)) from None

    @classmethod
    def from_yaml(cls, path: Path) -> Self:
        """Reads a YAML file.

        Raises:
            ConfigError: the file cannot be read, is not YAML, or does not fit.
        """
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read ({error}).") from None
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: is not YAML ({error}).") from None
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: expected keys and values, found {type(values).__name__}.")
        return cls.from_dict(values, source=str(path))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The tree as YAML, in the order of the fields."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def override(self, assignments: list[str]) -> Self:
        """A copy with `section.field=value` assignments applied; values are read as YAML.

        Raises:
            ConfigError: an assignment has no `=`, its path does not exist, or its value does not fit.
        """
        values = self.to_dict()
        for assignment in assignments:
            path, separator, text = assignment.partition("=")
            if not separator or not path:
                raise ConfigError(f"--set {assignment}: expected section.field=value.")
            *parents, leaf = path.strip().split(".")
            node = values
            for depth, name in enumerate(parents):
                if not isinstance(node.get(name), dict):
                    where = ".".join(parents[: depth + 1])
                    raise ConfigError(f"--set {assignment}: there is no section '{where}'.{suggest(name, node)}")
                node = node[name]
            if leaf not in node:
                inside = [f"{name}.{leaf}" for name, part in node.items() if isinstance(part, dict) and leaf in part]
                hint = f" Did you mean '{inside[0]}'?" if inside else suggest(leaf, node)
                raise ConfigError(f"--set {assignment}: there is no field '{path.strip()}'.{hint}")
            try:
                node[leaf] = yaml.safe_load(text)
            except yaml.YAMLError:
                raise ConfigError(f"--set {assignment}: the value is not YAML.") from None
        return type(self).from_dict(values, source="--set")


def suggest(name: str, known: Any) -> str:
    """' Did you mean …?' for the nearest of the `known` names, else ' Known: …'."""
    names = [str(candidate) for candidate in known]
    near = difflib.get_close_matches(name, names, n=1)
    return f" Did you mean '{near[0]}'?" if near else f" Known: {', '.join(names)}."


def _explain(cls: type[BaseModel], error: ValidationError, source: str) -> str:
    lines = []
    for problem in error.errors():
        path = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            hint = suggest(str(problem["loc"][-1]), _fields_at(cls, problem["loc"][:-1]))
            lines.append(f"{source}: unknown key '{path}'.{hint}")
        elif problem["type"] == "missing":
            lines.append(f"{source}: '{path}' is missing.")
        else:
            # Fields that don't fit each other are named by the message itself.
            what = f"'{path}' is {problem['input']!r}: " if path else ""
            lines.append(f"{source}: {what}{problem['msg'].removeprefix('Value error, ')}.")
    return "\n".join(lines)


def _fields_at(cls: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    for name in path:
        field = cls.model_fields.get(str(name))
        candidate = field.annotation if field else None
        if not (isinstance(candidate, type) and issubclass(candidate, BaseModel)):
            return list(cls.model_fields)
        cls = candidate
    return list(cls.model_fields)
