"""Option files as they are read: YAML of plain values, built on other files, changed from the command line.

``options`` says whether what they hold is right.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from hranet_arch.errors import InputError, first_line

# What a run adds to its options. The copy kept in the run's folder has them, and is itself an option file.
RUN_KEYS = ("is_train", "auto_resume", "dist", "rank", "world_size", "root_path", "iters_per_epoch")
RUN_PATHS = ("experiments_root", "results_root", "models", "training_states", "log", "visualization")


class _OptionLoader(yaml.SafeLoader):
    """Builds plain values only, refuses a key that stands twice, and leaves dates as text."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """Before ``<<`` is filled in, which may well bring a key that is there."""
        node, seen = super().compose_mapping_node(anchor), set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key_node.value in seen:
                problem = f"the key '{key_node.value}' is there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key_node.value)
        return node


# YAML 1.1 takes 1e-4 and 5e3 for strings; everybody who writes them means numbers.
_OptionLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def _parse(text: str) -> Any:
    """Raises ValueError, with the place in the text, where it is not YAML of plain values."""
    try:
        return _copy(yaml.load(text, Loader=_OptionLoader))  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        hint = " (indent with spaces, not tabs)" if "'\\t'" in str(error.problem) else ""
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{place}{error.problem}{hint}") from error
    except yaml.YAMLError as error:
        raise ValueError(first_line(error)) from error
    except RecursionError as error:
        raise ValueError("an alias inside what it names, or too many levels") from error
    except (LookupError, AttributeError) as error:  # yaml's own constructors, of `!!bool maybe` and `!!timestamp soon`
        raise ValueError("a value does not fit its tag (!!...)") from error


def _copy(value: Any) -> Any:
    """Without parts that YAML's aliases share: a change of one place changes no other."""
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def read_options(path: str | Path, *, _above: tuple[Path, ...] = ()) -> dict:
    """Reads an option file, following ``base: other.yml`` (relative to the file; its own keys win, level by level).

    Raises:
        InputError: if the file or its base is missing, not YAML, or not a mapping.
    """
    path = Path(path)
    try:
        options = _parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        named = f" (the base of {_above[-1]})" if _above else ""
        raise InputError(f"{path}: cannot be read: {error.strerror}{named}.") from error
    except ValueError as error:
        raise InputError(f"{path}: not valid YAML: {error}.") from error
    if not isinstance(options, dict):
        held = "nothing" if options is None else f"a {type(options).__name__}"
        raise InputError(f"{path}: holds {held}; an option file holds keys and values, such as 'name: my_run'.")
    base = options.pop("base", None)
    if base is not None and (not isinstance(base, str) or "\0" in base):
        raise InputError(f"{path}: base: {base!r} must be the name of another option file.")
    if base is not None:
        above = (*_above, path)
        if (path.parent / base).resolve() in [other.resolve() for other in above]:
            raise InputError(f"{path}: base: {base} leads back to a file that is built on this one.")
        options = merge(read_options(path.parent / base, _above=above), options)
    return _forget_run(options)


def merge(base: dict, changes: dict) -> dict:
    """Changes laid over the base; a mapping whose ``type`` changes replaces the base's, which has other arguments."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(value, dict) and isinstance(old, dict) and value.get("type", old.get("type")) == old.get("type"):
            value = merge(old, value)
        merged[key] = value
    return merged


def _forget_run(options: dict) -> dict:
    paths = options.get("path")
    if isinstance(paths, dict):
        options["path"] = {key: value for key, value in paths.items() if key not in RUN_PATHS}
    return {key: value for key, value in options.items() if key not in RUN_KEYS}


def override(options: dict, entries: Iterable[str]) -> None:
    """Applies ``--force_yml`` entries ``key:sub_key=VALUE`` in place; VALUE is read as YAML, new keys are made.

    Raises:
        InputError: if an entry cannot be understood, or goes through something that holds no keys.
    """
    for entry in entries:
        keys, equals, text = entry.partition("=")
        names = [name.strip() for name in keys.split(":")]
        if not equals or not all(names):
            raise InputError(f"--force_yml {entry!r}: write key:sub_key=value, e.g. train:total_iter=1000.")
        try:
            value = _parse(text)
        except ValueError as error:
            raise InputError(f"--force_yml {entry!r}: not a YAML value: {error}. Quote it: key='...'.") from error
        target = options
        for name in names[:-1]:
            if target.get(name) is None:
                target[name] = {}
            target = target[name]
            if not isinstance(target, dict):
                raise InputError(f"--force_yml {entry!r}: '{name}' is a value and has no keys inside.")
        target[names[-1]] = value
