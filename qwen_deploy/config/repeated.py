"""Keys that a YAML text gives more than once. YAML forbids them, and its reader takes the last one
without a word."""

from __future__ import annotations

from collections.abc import Iterator

import yaml


def repeated(node: yaml.Node | None, place: str = "") -> Iterator[str]:
    """A sentence for each such key, in the order of the text."""
    # By way of an alias a node can stand in itself, and the second place says nothing new.
    return _below(node, place, set()) if node else iter(())


def _below(node: yaml.Node, place: str, seen: set[int]) -> Iterator[str]:
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        yield from _twice(node, place)
        for key, value in node.value:
            yield from _below(value, f"{place}{key.value}/", seen)
    elif isinstance(node, yaml.SequenceNode):
        for at, item in enumerate(node.value):
            yield from _below(item, f"{place}{at}/", seen)


def _twice(node: yaml.MappingNode, place: str) -> Iterator[str]:
    lines: dict[tuple[str, str], list[int]] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            lines.setdefault((key.tag, key.value), []).append(key.start_mark.line + 1)
    for (_, key), found in lines.items():
        if len(found) > 1:
            yield f"{place}{key}: is given {_times(found)}"


def _times(lines: list[int]) -> str:
    often = "twice" if len(lines) == 2 else f"{len(lines)} times"
    *first, last = sorted(set(lines))
    return (
        f"{often}, in lines {', '.join(map(str, first))} and {last}"
        if first
        else (f"{often} in line {last}")
    )
