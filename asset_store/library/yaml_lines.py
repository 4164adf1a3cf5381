"""YAML read with the line of every value kept, and with bounds on what a small text may grow into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

from asset_store.errors import Problem
from asset_store.library.keys import safe_key

MAX_TEXT_BYTES = 1024 * 1024
MAX_DEPTH = 32
MAX_NODES = 100_000
"""After aliases are expanded."""

Location: TypeAlias = tuple[str | int, ...]


def dotted(location: Sequence[str | int]) -> str:
    """`("references", 2, "licence")` as `references[2].licence`."""
    shown = ""
    for step in location:
        shown += f"[{step}]" if isinstance(step, int) else f"{'.' if shown else ''}{safe_key(step)}"
    return shown


@dataclass
class YamlDocument:
    """Plain data, the 1-based line of each place in it, and what was wrong with the text."""

    file: str
    data: Any = None
    lines: dict[Location, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line_of(self, location: Sequence[str | int]) -> int:
        """The line of the place, or of the nearest place around it that is in the text."""
        for end in range(len(location), -1, -1):
            if tuple(location[:end]) in self.lines:
                return self.lines[tuple(location[:end])]
        return 1

    def add(self, location: Sequence[str | int], message: str, line: int | None = None) -> None:
        """Note a problem with a place."""
        self.problems.append(Problem(self.file, line or self.line_of(location), dotted(location), message))


class _TooMuch(Exception):
    """The text grows beyond the bounds; carries the line."""


class _BoundedLoader(yaml.SafeLoader):
    """Composes nodes, no deeper than MAX_DEPTH."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            event = self.peek_event()  # type: ignore[no-untyped-call]  # the stubs leave it out
            raise _TooMuch(f"the text is nested more than {MAX_DEPTH} deep", event.start_mark.line + 1)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read_yaml(text: str, *, file: str) -> YamlDocument:
    """The text as dicts, lists and plain scalars. Where it cannot be read at all, `data` is None and there is a
    problem; repeated keys and scalars of other types are problems too, and the rest is still read."""
    document = YamlDocument(file)
    if len(text) > MAX_TEXT_BYTES or len(text.encode(errors="replace")) > MAX_TEXT_BYTES:
        document.add((), f"The file is larger than {MAX_TEXT_BYTES // 1024} KiB.", line=1)
        return document
    loader: _BoundedLoader | None = None
    try:
        loader = _BoundedLoader(text)
        node = loader.get_single_node()
        if node is None:
            document.add((), "The file is empty.", line=1)
        else:
            document.data = _Reader(document, loader).read(node, ())
    except _TooMuch as error:
        document.data = None
        document.add((), f"Refused: {error.args[0]}.", line=error.args[1])
    except yaml.reader.ReaderError as error:
        document.add((), "This character may not stand in YAML.", line=text.count("\n", 0, error.position) + 1)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        why = ", ".join(part for part in (error.context, error.problem) if part)
        document.add((), f"This is not valid YAML: {why}.", line=mark.line + 1 if mark else 1)
    finally:
        if loader is not None:
            loader.dispose()
    return document


class _Reader:
    """Turns nodes into data. Aliases are expanded here, so here they are counted."""

    def __init__(self, document: YamlDocument, loader: _BoundedLoader) -> None:
        self.document = document
        self.loader = loader
        self.nodes = 0
        self.open: set[int] = set()

    def read(self, node: yaml.Node, location: Location) -> Any:
        line = node.start_mark.line + 1
        self.document.lines.setdefault(location, line)
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise _TooMuch(f"the text has more than {MAX_NODES} values, aliases expanded", line)
        if len(location) > MAX_DEPTH:
            raise _TooMuch(f"the text is nested more than {MAX_DEPTH} deep, aliases expanded", line)
        if id(node) in self.open:
            raise _TooMuch("an alias stands inside what it stands for", line)
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, location)
            if isinstance(node, yaml.SequenceNode):
                return [self.read(item, (*location, place)) for place, item in enumerate(node.value)]
            return self._scalar(node, location)
        finally:
            self.open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, location: Location) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                self.document.add(location, "A key must be plain text; merge keys (<<) are not read.", line=line)
                continue
            key = str(key_node.value)
            if key in data:
                first = self.document.line_of((*location, key))
                self.document.add((*location, key), f"This key is given twice; first in line {first}.", line=line)
                continue
            # A block under its key begins a line later, but the key is where a person looks.
            self.document.lines[(*location, key)] = line
            data[key] = self.read(value_node, (*location, key))
        return data

    def _scalar(self, node: yaml.Node, location: Location) -> Any:
        try:
            return self.loader.construct_object(node)
        except (yaml.YAMLError, ValueError, OverflowError):
            self.document.add(location, f"{str(node.value)[:60]!r} cannot be read; if it is text, put it in quotes.")
            return None
