"""YAML to plain data, remembering where everything stood.

Only what a policy needs is understood: text, numbers, true/false, null, lists and mappings with text keys. Tags that
would build objects, keys written twice and aliases that explode become problems with a line and a column; nothing of
them is executed or expanded.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, ValuesView
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

from .errors import Place, Problem, quote
from .syntax import flaw_of

__all__ = ["Document", "Spot", "document_of", "read_document"]

Spot: TypeAlias = tuple[str, "int | None", "int | None"]
"""File, line and column; the last two from 1, or `None` where there is no text."""

_MOST_CHARACTERS, _MOST_NODES, _MOST_LEVELS = 100_000, 5_000, 20
_TAG = "tag:yaml.org,2002:"
_CONTAINERS = (list, tuple, ValuesView)


class _TooMuchError(Exception):
    """The document is larger or deeper than any policy; reading stops."""


class _Loader(yaml.SafeLoader):
    """Takes plain words and numbers as YAML 1.2 does: `on` is a word, `010` is ten, `1e-3` is a number.

    It stops at a document that is too large while it composes it, since composing is what takes the time.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.node_count = self.level = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node with all below it."""
        self.node_count += 1
        if self.node_count > 2 * _MOST_NODES or self.level > _MOST_LEVELS:  # keys are nodes, too
            raise _TooMuchError
        self.level += 1
        node = super().compose_node(parent, index)
        self.level -= 1
        return node


_Loader.yaml_implicit_resolvers = {}
for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", [*"~nN", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?[0-9]+", [*"-+0123456789"]),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", None),
):
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(f"^(?:{_pattern})$"), _first or [*"-+.0123456789"])

_SCALARS: dict[str, Callable[[str], Any]] = {
    _TAG + "str": str,
    _TAG + "int": int,
    _TAG + "float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    _TAG + "bool": lambda text: {"true": True, "false": False}[text.lower()],
    _TAG + "null": lambda _: None,
}


@dataclass(slots=True)
class Document:
    """Plain data and its positions.

    Attributes:
        file: what problems call it.
        data: what it holds; `None` if it could not be read at all.
        problems: what is wrong with the YAML itself.
        values: where the value at each place was written. keys: where the key that it stands under was.
    """

    file: str
    data: Any = None
    problems: list[Problem] = field(default_factory=list)
    values: dict[Place, Spot] = field(default_factory=dict)
    keys: dict[Place, Spot] = field(default_factory=dict)

    def position(self, place: Place, *, at_key: bool = False) -> Spot:
        """Return where a place was written, or the nearest one above it."""
        if at_key and place in self.keys:
            return self.keys[place]
        while place and place not in self.values:
            place = place[:-1]
        return self.values.get(place, (self.file, None, None))

    def complain(self, where: tuple[int, int], message: str, expected: str, got: str, hint: str = "") -> None:
        """Add a problem of the YAML itself."""
        line, column = where
        self.problems.append(
            Problem(
                file=self.file,
                line=line,
                column=column,
                rule=None,
                message=message,
                expected=expected,
                got=got,
                hint=hint,
            )
        )


def read_document(text: str, file: str) -> Document:
    """Read one YAML document; what is wrong with it is listed in its `problems`."""
    document, loader = Document(file), None
    try:
        if len(text) > _MOST_CHARACTERS:
            raise _TooMuchError
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            document.complain((1, 1), "file", "a policy", "nothing", "Begin with `version: 1`.")
        else:
            document.data = _Walk(document).value(root, ())
    except yaml.MarkedYAMLError as error:
        flaw = flaw_of(error, text)
        document.complain(flaw.where, flaw.message, flaw.expected, flaw.got, flaw.hint)
    except yaml.reader.ReaderError as error:
        *above, start = text[: error.position].split("\n")
        where = (len(above) + 1, len(start) + 1)
        document.complain(where, "YAML", "printable text", f"character {error.character:#04x}")
    except (ValueError, OverflowError):  # from PyYAML: an escape beyond Unicode, a version of a thousand digits
        where = (loader.line + 1, loader.column + 1) if loader else (1, 1)
        document.complain(where, "YAML", "well-formed YAML", "a number out of range")
    except _TooMuchError:
        expected = f"at most {_MOST_CHARACTERS} characters, and {_MOST_NODES} values in {_MOST_LEVELS} levels"
        document.complain((1, 1), "YAML", expected, "more", "Aliases count as often as they are used.")
    return document


def document_of(data: Mapping[str, Any], file: str) -> Document:
    """Take plain data for a document without positions; more of it than a file may hold is a problem."""
    document, seen_count = Document(file, data=dict(data)), 0
    level: list[Any] = [data]
    for _ in range(_MOST_LEVELS + 1):
        seen_count += len(level)
        if seen_count > _MOST_NODES or not level:
            break
        inner = (each.values() if isinstance(each, Mapping) else each for each in level)
        values = itertools.chain.from_iterable(each for each in inner if isinstance(each, _CONTAINERS))
        level = list(itertools.islice(values, _MOST_NODES + 1))
    if level:
        document.data = None
        expected = f"at most {_MOST_NODES} values in {_MOST_LEVELS} levels"
        document.problems.append(
            Problem(file=file, line=None, column=None, rule=None, message="the policy", expected=expected, got="more")
        )
    return document


class _Walk:
    """One walk over the tree of nodes that PyYAML composed.

    An alias is followed as often as it is used, so the count of values bounds what a bomb can do, and the depth what
    an alias of itself can do.
    """

    def __init__(self, document: Document) -> None:
        self.document = document
        self.seen_count = 0

    def value(self, node: yaml.Node, place: Place) -> Any:
        """Return the plain value of a node, and note where it stands."""
        self.seen_count += 1
        if self.seen_count > _MOST_NODES or len(place) > _MOST_LEVELS:
            raise _TooMuchError
        where = _position(node)
        self.document.values[place] = (self.document.file, *where)
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self.mapping(node, place)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [self.value(item, (*place, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
            return self.scalar(node)
        expected = "text, a number, true, false, null, a list or a mapping"
        hint = "A policy can name actions, never code."
        self.document.complain(where, "YAML", expected, f"the tag {node.tag.replace(_TAG, '!!')}", hint)
        return None

    def mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        """Return a mapping; of a key written twice the first counts."""
        plain: dict[str, Any] = {}
        for key_node, value_node in node.value:
            where = _position(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self.document.complain(where, "YAML", "a key of plain text", "a list or a mapping", "Name the key.")
                continue
            key = key_node.value  # as written: `on`, `yes` and `1` are names here
            if self.is_unprintable(key_node):
                continue
            if key in plain:
                _, line, _ = self.document.keys[(*place, key)]
                hint = f"It is in line {line} already; remove one of the two."
                self.document.complain(where, "YAML", "each key once", f"{quote(key)} again", hint)
                continue
            self.document.keys[(*place, key)] = (self.document.file, *where)
            plain[key] = self.value(value_node, (*place, key))
        return plain

    def is_unprintable(self, node: yaml.ScalarNode) -> bool:
        """Complain of an escape that writes what a file may not hold, such as a bell: it would end up in logs."""
        match = _Loader.NON_PRINTABLE.search(node.value)
        if match is not None:
            self.document.complain(_position(node), "YAML", "printable text", f"character {ord(match[0]):#04x}")
        return match is not None

    def scalar(self, node: yaml.ScalarNode) -> Any:
        """Return text, a number, a truth value or `None`."""
        if self.is_unprintable(node):
            return None
        try:
            return _SCALARS[node.tag](node.value)
        except (KeyError, ValueError):
            kind = node.tag.removeprefix(_TAG)
            self.document.complain(_position(node), "YAML", f"a value of type {kind}", quote(node.value))
            return None


def _position(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1
