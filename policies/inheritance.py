"""One policy over another: what `extends` means, worked out on plain data.

The policy that extends states its own `version` and `name`. Of everything else the other policy's value stands unless
this one has its own: mappings (`sample`, `budget`, `verify`, ...) are merged key by key, at any depth, while lists and
conditions are replaced whole. Rules are matched by name: one of a known name is merged key by key where it stood,
others are appended, and `{name: ..., remove: true}` drops one, together with what the other policy's rules say of it.

Every value keeps the file, line and column that it was written at, so that a mistake is told where it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .document import Document
from .errors import MismatchError, Place, quote, suggest

__all__ = ["overlaid"]

_ITS_OWN = ("version", "name", "extends")
_WHOLE = ("when", "success")


def overlaid(base: Document, child: Document) -> tuple[Document, list[MismatchError]]:
    """Lay one policy over another.

    Args:
        base: a policy without mistakes, itself overlaid if it extends another.
        child: what extends it, which may be wrong in any way but holds a mapping.

    Returns:
        The policy that they make together, and what is wrong with the removal of rules. The places of these mismatches
        are places in `child`.
    """
    overlay = _Overlay(base, child)
    merged: dict[str, Any] = {}
    overlay.result.values[()] = child.position(())
    for key in dict.fromkeys([*base.data, *child.data]):
        if key == "rules" and all(isinstance(each.get(key), (list, tuple)) for each in (base.data, child.data)):
            merged[key] = overlay.rules()
        elif key in child.data and key != "extends":
            merged[key] = overlay.value((key,), base.data.get(key), child.data[key], (key,), (key,))
            overlay.key(child, (key,), (key,))
        elif key not in _ITS_OWN:
            merged[key] = overlay.copy(base, base.data[key], (key,), (key,))
    overlay.result.data = merged
    return overlay.result, overlay.wrong


class _Overlay:
    """The merged document while it grows; each method notes where the values that it takes over were written."""

    def __init__(self, base: Document, child: Document) -> None:
        self.base, self.child = base, child
        self.result = Document(child.file, problems=list(child.problems))
        self.wrong: list[MismatchError] = []

    def copy(self, source: Document, value: Any, old: Place, new: Place) -> Any:
        """Take over a value as it is, from its old place in `source` to its new one."""
        self.result.values[new] = source.position(old)
        if isinstance(value, Mapping):
            for key in value:
                self.key(source, (*old, key), (*new, key))
            return {key: self.copy(source, value[key], (*old, key), (*new, key)) for key in value}
        if isinstance(value, (list, tuple)):
            return [self.copy(source, each, (*old, i), (*new, i)) for i, each in enumerate(value)]
        return value

    def key(self, source: Document, old: Place, new: Place) -> None:
        """Note where a key was written."""
        self.result.keys[new] = source.position(old, at_key=True)

    def value(self, new: Place, ours: Any, theirs: Any, base: Place, child: Place) -> Any:
        """Merge two mappings key by key, or take over what the child has."""
        if new[-1] in _WHOLE or not isinstance(ours, Mapping) or not isinstance(theirs, Mapping):
            return self.copy(self.child, theirs, child, new)
        self.result.values[new] = self.child.position(child)
        merged: dict[str, Any] = {}
        for key in dict.fromkeys([*ours, *theirs]):
            if key in theirs:
                places = (*new, key), (*base, key), (*child, key)
                merged[key] = self.value(places[0], ours.get(key), theirs[key], *places[1:])
                self.key(self.child, places[2], places[0])
            else:
                merged[key] = self.copy(self.base, ours[key], (*base, key), (*new, key))
                self.key(self.base, (*base, key), (*new, key))
        return merged

    def rules(self) -> list[Any]:
        """Merge the rules by name; a name that the child has twice is kept twice, to be told as a mistake."""
        ours, theirs = self.base.data["rules"], self.child.data["rules"]
        known = [rule["name"] for rule in ours]
        removed: set[str] = set()
        overrides: dict[str, int] = {}
        added: list[int] = []
        for index, rule in enumerate(theirs):
            name = rule.get("name") if isinstance(rule, Mapping) else None
            if isinstance(rule, Mapping) and "remove" in rule:
                self.check_removal(rule, index, known)
                removed |= {name} if isinstance(name, str) else set()
            elif isinstance(name, str) and name in known and name not in overrides:
                overrides[name] = index
            else:
                added.append(index)
        self.result.values[("rules",)] = self.child.position(("rules",))
        self.key(self.child, ("rules",), ("rules",))
        merged: list[Any] = []
        for index, rule in enumerate(ours):
            if rule["name"] in removed:
                continue
            place: Place = ("rules", len(merged))
            still = [other for other in rule.get("inhibits", ()) if other not in removed]
            kept = {**rule, "inhibits": still} if len(still) < len(rule.get("inhibits", ())) else rule
            if (mine := overrides.get(rule["name"])) is None:
                merged.append(self.copy(self.base, kept, ("rules", index), place))
            else:
                merged.append(self.value(place, kept, theirs[mine], ("rules", index), ("rules", mine)))
        for index in added:
            merged.append(self.copy(self.child, theirs[index], ("rules", index), ("rules", len(merged))))
        return merged

    def check_removal(self, rule: Mapping[str, Any], index: int, known: list[str]) -> None:
        """Find what is wrong with an entry that removes a rule."""
        place: Place = ("rules", index)
        if rule["remove"] is not True:
            hint = "Leave the key out to keep the rule."
            self.wrong.append(MismatchError("`true`", quote(rule["remove"]), hint, place=(*place, "remove")))
        name = rule.get("name")
        if name not in known:
            at = (*place, "name") if "name" in rule else place
            self.wrong.append(
                MismatchError("the name of a rule to remove", quote(name), suggest(str(name), known), place=at)
            )
        for key in rule:
            if key not in ("name", "remove"):
                got = quote(key)
                self.wrong.append(
                    MismatchError("nothing beside name and remove", got, place=(*place, key), at_key=True)
                )
