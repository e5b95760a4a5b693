"""How rules refer to each other: what is wrong with it, and the order that follows from it.

`inhibits` is the one reference there is. It works on names alone, so that a file whose rules are otherwise wrong can
still be told about its references.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from .errors import MismatchError, quote, suggest

__all__ = ["MOST_RULES", "inhibitors_first", "reference_mismatches"]

MOST_RULES = 200
"""Rules of a policy; every rule is compared with every other."""
_MOST_HINTS = 100  # finding the nearest name takes most of the time


def reference_mismatches(rules: Sequence[tuple[str, Sequence[str]]]) -> list[MismatchError]:
    """Find what is wrong between rules, given the name of each and the names that it inhibits.

    Names must be unique, `inhibits` must name other rules, and inhibition must not run in a circle, in which every
    rule could wait for another.
    """
    if len(rules) > MOST_RULES:
        return [MismatchError(f"at most {MOST_RULES} rules", str(len(rules)), place=("rules",))]
    names = [name for name, _ in rules]
    wrong: list[MismatchError] = []
    for index, (name, inhibits) in enumerate(rules):
        if (first := names.index(name)) < index:
            hint = f"Rename this rule: rule {first + 1} has the name already."
            wrong.append(MismatchError("a unique name", quote(name), hint, place=("rules", index, "name")))
        for position, other in enumerate(inhibits):
            place = ("rules", index, "inhibits", position)
            if other == name:
                wrong.append(MismatchError("the name of another rule", quote(other), "Leave it out.", place=place))
            elif other not in names:
                hint = suggest(other, dict.fromkeys(names)) if len(wrong) < _MOST_HINTS else ""
                wrong.append(MismatchError("the name of a rule", quote(other), hint, place=place))
    return wrong or _circle(dict(rules))


def inhibitors_first(inhibits: Mapping[str, Sequence[str]]) -> list[str]:
    """Order the rules of a file: as written, except that a rule goes before those it inhibits.

    >>> inhibitors_first({"mild": [], "other": [], "severe": ["mild"]})
    ['other', 'severe', 'mild']
    """
    order: list[str] = []
    waiting = list(inhibits)
    while waiting:
        ready = next(name for name in waiting if not any(name in inhibits[other] for other in waiting))
        waiting.remove(ready)
        order.append(ready)
    return order


def _circle(inhibits: Mapping[str, Sequence[str]]) -> list[MismatchError]:
    """Return a mismatch for one circle of inhibition, told from its first rule in the file, or nothing."""
    try:
        TopologicalSorter(inhibits).prepare()
    except CycleError as error:
        ring: list[str] = error.args[1][:0:-1]  # reversed: the sorter takes "inhibits" for "comes after"
    else:
        return []
    positions = {name: position for position, name in enumerate(inhibits)}
    start = ring.index(min(ring, key=positions.__getitem__))
    circle = " -> ".join([*ring[start:], *ring[: start + 1]])
    place = ("rules", positions[ring[start]], "inhibits")
    return [MismatchError("no circle of inhibition", circle, "Remove one of these.", place=place)]
