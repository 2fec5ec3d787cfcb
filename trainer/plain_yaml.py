"""YAML as plain data. Whatever is wrong with it is a yaml.YAMLError, with its line where there is one."""

from __future__ import annotations

from typing import Any

import yaml


class Loader(yaml.SafeLoader):
    """Says where a value stands that looks like a date or a number and is none: PyYAML lets Python's own errors out."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # as PyYAML calls it
        """The value of a node."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, OverflowError) as error:
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                problem=f"{str(node.value)[:80]!r} reads as a {kind}, but is none ({error}); put text in quotes",
                problem_mark=node.start_mark,
            ) from error


def load(text: str | bytes, loader: type[Loader] = Loader) -> Any:
    """What a text says."""
    try:
        return yaml.load(text, Loader=loader)  # noqa: S506  # a SafeLoader
    except RecursionError:
        raise yaml.YAMLError("lists or mappings hundreds deep in one another") from None
