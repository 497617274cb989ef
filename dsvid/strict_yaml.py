"""YAML as recipes are written in: safe, without its traps, and never more than a recipe can be. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from dsvid.errors import RecipeError

MAX_YAML_BYTES = 1 << 18
MAX_YAML_NODES = 5000
MAX_YAML_DEPTH = 32
MAX_NUMBER_LETTERS = 40


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _StrictLoader(yaml.SafeLoader):
    """safe_load, with two traps closed: a key given twice is an error, and `1e-3` is a number (YAML 1.1 says text)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (list, dict, set)):
                raise RecipeError(f"line {key_node.start_mark.line + 1}: a key that is no word", found=key)
            if key in seen:
                raise RecipeError(
                    f"line {key_node.start_mark.line + 1}: key given twice",
                    found=key,
                    expected="each key once",
                    fix="delete one of them",
                )
            seen.add(key)
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """The parser makes node after node, so that a hostile file ends here, and not after minutes."""
        if self.check_event(yaml.events.AliasEvent):
            raise RecipeError("YAML aliases are not read", expected="plain values (an alias can blow up a tiny file)")
        self.nodes, self.level = getattr(self, "nodes", 0) + 1, getattr(self, "level", 0) + 1
        if self.nodes > MAX_YAML_NODES or self.level > MAX_YAML_DEPTH:
            raise RecipeError(
                f"line {parent.start_mark.line + 1 if parent else 1}: too much for a recipe",
                found=f"value {self.nodes}, {self.level} levels deep",
                expected=f"at most {MAX_YAML_NODES} values, {MAX_YAML_DEPTH} levels",
            )
        node = super().compose_node(parent, index)
        self.level -= 1
        return node

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        # A whole number of a million digits, or of `1:59:59:…`, takes Python minutes.
        if node.tag in _NUMBERS and len(node.value) > MAX_NUMBER_LETTERS:
            raise RecipeError(
                f"line {node.start_mark.line + 1}: not a number that a recipe can hold",
                found=f"{len(node.value)} letters, {node.value[:20]}…",
                expected=f"at most {MAX_NUMBER_LETTERS}",
            )
        return super().construct_scalar(node)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def parse_value(text: str) -> Any:
    """The value of an `a.b=v` override: YAML rules, so `false`, `3`, `1e-3`, `[0.9, 0.95]` are what they look like."""
    if text == "":
        return ""
    try:
        return yaml.load(text, _StrictLoader)
    except (yaml.YAMLError, ValueError):  # ValueError: a date that does not exist
        return text


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a recipe file as a plain tree. Raises RecipeError with the path (and the line where there is one)."""
    if not path.is_file():
        raise RecipeError(f"recipe file {path}", found="nothing there" if not path.exists() else "not a file")
    if path.stat().st_size > MAX_YAML_BYTES:
        raise RecipeError(
            f"recipe file {path}", found=f"{path.stat().st_size} bytes", expected="at most 256 KB of YAML"
        )
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe file {path}", found=f"not text ({error.reason})", expected="a YAML file") from error
    except (ValueError, OSError) as error:  # a date that does not exist, a file that may not be read
        raise RecipeError(f"recipe file {path} cannot be read", found=str(error).partition("\n")[0]) from error
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe file {path}: not valid YAML", found=" ".join(str(error).split())) from error
    except RecipeError as error:
        raise RecipeError(
            f"recipe file {path}, {error.what}", found=error.found, expected=error.expected, fix=error.fix
        ) from error
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise RecipeError(f"recipe file {path}", found=type(tree).__name__, expected="`key: value` lines")
    return tree
