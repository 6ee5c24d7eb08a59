"""Configs as YAML files: what they may not have, although YAML has it, and their options by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from pcam.atomic import is_stream
from pcam.errors import ConfigError

DEEPEST: Final = 50
"""Levels of a config, one within the other; a reader takes ever longer for deeper ones."""


def check_yaml(path: Path) -> None:
    """Refuse a config that does not say what it seems to say.

    Aliases are refused too: configs need none, and with them a file of some lines can stand for one of gigabytes.

    Args:
        path: The file; one that cannot be read twice, as a pipe, is left to what reads it.

    Raises:
        ConfigError: If it is not YAML in UTF-8, if a key is there twice in one mapping, or if it has an alias.
    """
    if is_stream(path):
        return
    try:
        _check_events(path)
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"Expected a config in UTF-8, but found the byte {error.object[error.start]:#04x} at place {error.start} "
            f"of {path} ({error.reason}); save it as UTF-8."
        ) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(
            f"Expected a config in YAML, but {path} cannot be read ({' '.join(str(error).split())}); correct it."
        ) from error


def _check_events(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    # For each mapping that is open: the lines of its keys, and whether a key comes next; None for a sequence.
    open_parts: list[tuple[dict[str, int], bool] | None] = []
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = 1 + (event.start_mark.line if event.start_mark else 0)
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(
                f"Expected a config without aliases, but found *{event.anchor} in line {line} of {path}; write the "
                f"value out."
            )
        if isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            open_parts.pop()
        if not isinstance(event, yaml.NodeEvent | yaml.MappingEndEvent | yaml.SequenceEndEvent):
            continue
        if isinstance(event, yaml.ScalarEvent) and open_parts and (part := open_parts[-1]) and part[1]:
            keys = part[0]
            if event.value in keys:
                raise ConfigError(
                    f"Expected each key once, but '{event.value}' is in line {keys[event.value]} of {path} and again "
                    f"in line {line}; remove one of them."
                )
            keys[event.value] = line
        starts = isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent)
        if not starts and open_parts and (part := open_parts[-1]) is not None:
            open_parts[-1] = (part[0], not part[1])  # a key is followed by a value, and a whole value by a key
        if starts and len(open_parts) == DEEPEST:
            raise ConfigError(
                f"Expected a config that is at most {DEEPEST} levels deep, but {path} is deeper in line {line}; "
                f"correct it."
            )
        if isinstance(event, yaml.MappingStartEvent):
            open_parts.append(({}, True))
        elif isinstance(event, yaml.SequenceStartEvent):
            open_parts.append(None)


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Name each option of a config by its whole path, as a command line does: {"data": {"root": x}} is "data.root".

    Args:
        config: What a file holds; a list is a value.
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{name}": inner for name, inner in flatten(value).items()}
        else:
            flat[key] = value
    return flat
