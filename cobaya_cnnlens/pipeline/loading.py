"""Configurations from YAML files, with their bases and the members of studies."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

import yaml

from ..errors import ConfigError
from .config import Config
from .estimators import with_own_options

# Of the YAML: more is no configuration but an attack, or a product's name given by mistake.
MOST_BYTES, MOST_VALUES, MOST_LEVELS = 1_000_000, 20_000, 20

_T = TypeVar("_T")
# Where a value stands: keys of mappings and numbers of list items, from the outside in.
_Keys = tuple[Any, ...]


def load_config(path: str | Path) -> Config:
    """Read and check a configuration.

    A file may name another as its ``base`` (a path relative to itself): sections are merged key
    by key, lists replaced whole, and a null takes the base's value away. A *study* has
    ``members``, changes by name, and ``FILE#MEMBER`` is the configuration of one of them; its
    products lie in a folder of the study's.

    Parameters
    ----------
    path : of the file, or FILE#MEMBER

    Returns
    -------
    the configuration

    Raises
    ------
    ConfigError
        if a file is missing, is not YAML, has a wrong key or value, is its own base, or if a
        study is named without one of its members
    """
    file, member = _split(path)
    content = _with_bases(Path(file), ())
    members = _members(file, content)
    if member:
        if member not in members:
            raise ConfigError(
                f"{file}: no member '{member}'; key 'members' has {', '.join(members) or 'none'}"
            )
        content = _merged(content, members[member])
        for key, joint in (("name", "_"), ("products", "/")):
            if key in content:
                content[key] = f"{content[key]}{joint}{member}"
    elif members:
        raise ConfigError(
            f"{file} is a study of {len(members)} members; name one, as in "
            f"{file}#{next(iter(members))}"
        )
    config = _validated(Config, content, path)
    try:
        return with_own_options(config)
    except ValidationError as error:
        raise ConfigError(_explain(path, error, ("baseline",))) from None
    except ValueError as error:
        raise ConfigError(f"{path}: key 'baseline.kind': {error}") from None


def load_as(kind: type[_T], path: str | Path) -> _T:
    """A file that holds something else than a :class:`Config`: an instance of the dataclass
    ``kind``, its keys and values checked in the same way.

    Parameters
    ----------
    kind : the dataclass
    path : of the file

    Returns
    -------
    an instance of ``kind``

    Raises
    ------
    ConfigError
        if the file cannot be read, or has a wrong key or value
    """
    return _validated(kind, _with_bases(Path(path), ()), path)


def _validated(kind: type[_T], content: dict[str, Any], path: str | Path) -> _T:
    for keys, value in _leaves(content):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{path}: key '{_dotted(keys)}' is {value}; give a finite number")
    try:
        checked: _T = TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        raise ConfigError(_explain(path, error)) from None
    for keys, value in _leaves(content):
        if isinstance(value, bool) and not isinstance(_at(checked, keys), bool):
            raise ConfigError(f"{path}: key '{_dotted(keys)}' is {value}; give a number")
    return checked


def _leaves(content: Any, above: _Keys = ()) -> Iterator[tuple[_Keys, Any]]:
    """Keys and values of all that is no mapping or list."""
    if isinstance(content, (dict, list)):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _leaves(value, (*above, key))
    else:
        yield above, content


def _dotted(keys: _Keys) -> str:
    return ".".join(map(str, keys))


def _at(section: Any, keys: _Keys) -> Any:
    """What has become of a value of the file in the checked configuration."""
    for key in keys:
        indexed = isinstance(section, (dict, list, tuple))
        section = section[key] if indexed else getattr(section, key)
    return section


def _split(path: str | Path) -> tuple[str, str]:
    """FILE#MEMBER → the two; a file whose own name holds a # is one."""
    whole = str(path)
    if "#" not in whole or Path(whole).is_file():
        return whole, ""
    file, _, member = whole.rpartition("#")
    return file, member


def load_study(path: str | Path) -> dict[str, Config]:
    """Every configuration of a file by the path that names it: a study's members, in order, or
    the one that the file is.

    Parameters
    ----------
    path : of the file, or FILE#MEMBER

    Returns
    -------
    configurations by path

    Raises
    ------
    ConfigError
        as :func:`load_config`
    """
    paths = [str(path)]
    if not _split(path)[1]:
        members = _members(path, _with_bases(Path(path), ()))
        paths = [f"{path}#{member}" for member in members] or paths
    return {p: load_config(p) for p in paths}


def _members(path: str | Path, content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Take a study's members out of a file's content."""
    members = content.pop("members", None)
    if members is None:
        return {}
    if not isinstance(members, dict) or not all(isinstance(v, dict) for v in members.values()):
        raise ConfigError(
            f"{path}: key 'members' must map names to changes of the configuration, {{}} for none"
        )
    for name in members:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", str(name)):
            raise ConfigError(
                f"{path}: key 'members' has the name {name!r:.40}, which becomes a folder's; take "
                "letters, digits, _, - and . only"
            )
    return {str(name): changes for name, changes in members.items()}


def _with_bases(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in above:
        raise ConfigError(f"{path}: key 'base' leads back to this file")
    named = f" (named as 'base' by {above[-1]})" if above else ""
    content = _read_yaml(path, named)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold a mapping of sections, not {type(content).__name__}")
    base = content.pop("base", None)
    if base is None:
        return content
    if not isinstance(base, str) or not base.isprintable():
        raise ConfigError(f"{path}: key 'base' must be the path of a configuration, not {base!r}")
    return _merged(_with_bases(path.parent / base, (*above, path.resolve())), content)


def _read_yaml(path: Path, named: str) -> Any:
    """What a YAML file holds, each key once and not more than a configuration can be.

    Raises
    ------
    ConfigError
        if it cannot be read, or is not such a file; ``named`` tells who asked for it
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}){named}") from None
    if len(raw) > MOST_BYTES:
        raise ConfigError(f"{path}: is larger than a configuration can be; name another file")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not UTF-8 at byte {error.start}; save it in that encoding"
        ) from None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_node(node, path)
        return loader.construct_document(node)
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply; take the inner levels out") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    except (ValueError, OverflowError, TypeError) as error:  # dates, numbers, keys that are none
        raise ConfigError(f"{path}: holds a value that YAML cannot read: {error}") from None


def _check_node(root: yaml.Node, path: Path) -> None:
    """Refuse a document that has a key twice, or that aliases blow up beyond all measure."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node, levels: int) -> int:
        if levels > MOST_LEVELS:
            raise ConfigError(f"{path}: is nested too deeply; take the inner levels out")
        if id(node) not in sizes:
            parts = []
            if isinstance(node, yaml.MappingNode):
                lines: dict[str, int] = {}
                for key, _ in node.value:
                    if not isinstance(key, yaml.ScalarNode):
                        continue
                    line = key.start_mark.line + 1
                    if key.value in lines:
                        raise ConfigError(
                            f"{path}: key '{key.value}' stands twice in one section, in lines "
                            f"{lines[key.value]} and {line}; keep one"
                        )
                    lines[key.value] = line
                parts = [part for pair in node.value for part in pair]
            elif isinstance(node, yaml.SequenceNode):
                parts = node.value
            sizes[id(node)] = 1 + sum(size(part, levels + 1) for part in parts)
        return sizes[id(node)]

    if size(root, 0) > MOST_VALUES:
        raise ConfigError(f"{path}: holds more than {MOST_VALUES} values; take some out")


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merged(merged[key], value)
        else:
            merged[key] = value
    return merged


def _explain(path: str | Path, error: ValidationError, above: _Keys = ()) -> str:
    lines = []
    for item in error.errors():
        key = _dotted((*above, *item["loc"]))
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            lines.append(f"{path}: unknown key '{key}'; remove it or correct its spelling")
        elif key:
            given = reprlib.repr(item.get("input"))
            lines.append(f"{path}: key '{key}': {message} (got {given:.80})")
        else:
            lines.append(f"{path}: {message}")
    return "\n".join(lines)
