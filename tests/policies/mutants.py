"""Mutants of policy files: the presets and the corpus of mistakes, damaged at random, and what must hold of each.

Run as a program (`python -m tests.policies.mutants COUNT`) it prints its findings as JSON, with an audit hook that
notes whatever a policy has no business to start. It draws no conclusions; `test_fuzz` does.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from collapse_guard.policies import (
    Policy,
    PolicyEngine,
    PolicyError,
    Reading,
    explain_policy,
    lint_policy,
    load_policy,
    policy_json_schema,
    policy_text,
    preset_names,
)
from tests.checkout import ROOT

DATA = Path(__file__).parent / "data"
HOSTILE = (
    "!!python/object/apply:os.system ['true']",
    "!!python/name:os.system",
    "!!python/module:this",
    "__import__('os').system('true')",
    "{{ 7 * 7 }}",
    "${HOME}",
    "&a [*a]",
    "*gone",
    "<<: {mode: observe}",
    "/dev/zero",
    "/etc/hostname",
    "../../../../etc/passwd",
    '"\\0"',
    '"\\UFFFFFFFF"',
    '"\\ud800"',
    "\N{RIGHT-TO-LEFT OVERRIDE}\N{COLLISION SYMBOL}e\u0301",
    "9" * 400,
    "9" * 5000,
    "-1",
    "1e999",
    ".nan",
    "-.inf",
    "0x10",
    "1_000",
    "2026-01-01",
    "[" * 60,
    "{a: " * 60,
    "- " * 60,
    "? ",
    "%YAML 9.9",
    "---",
    "...",
    "null",
    "~",
    "''",
    "a" * 3000,
    " " * 3000,
    "[" + "alert, " * 500 + "]",
    "rel(" + " " * 2000,
    "trend(perplexity, over: 100 readings) < 0",
    "any: [usage < 1, any: [usage < 1]]",
    "999999999999999999 steps",
    "0 steps",
    "1 epoch",
)


def texts() -> tuple[list[str], list[str]]:
    """Return what is mutated: policies that load (the presets, as written and written out whole), and mistakes."""
    good = [path.read_text(encoding="utf-8") for path in sorted(DATA.glob("*.good.yaml"))]
    for name in preset_names():
        whole = load_policy(name).model_dump(mode="json", by_alias=True)
        good += [policy_text(name) or "", yaml.safe_dump(whole, sort_keys=False)]
    return good, [path.read_text(encoding="utf-8") for path in sorted(DATA.glob("*.bad.yaml"))]


def _flip(text: str, draw: random.Random) -> str:
    place = draw.randrange(len(text) + 1)
    letter = draw.choice(
        ["\0", "\t", "\n", ":", "-", "#", "'", '"', "{", "]", "&", "*", "!", "\ufeff", "\u2028", "é", "9"]
    )
    return text[:place] + letter + text[place + draw.randrange(2) :]


def _lines(text: str, draw: random.Random) -> str:
    lines = text.split("\n")
    one, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    kind = draw.randrange(5)
    if kind == 0:
        del lines[one]
    elif kind == 1:
        lines.insert(other, lines[one])
    elif kind == 2:
        lines[one], lines[other] = lines[other], lines[one]
    elif kind == 3:
        lines[one] = " " * draw.randrange(1, 5) + lines[one]
    else:
        lines[one] = lines[one][draw.randrange(3) :]
    return "\n".join(lines)


def _scalar(text: str, draw: random.Random) -> str:
    lines = text.split("\n")
    keyed = [index for index, line in enumerate(lines) if ": " in line.partition("#")[0]]
    if not keyed:
        return text + draw.choice(HOSTILE)
    one, other = draw.choice(keyed), draw.choice(keyed)
    value = draw.choice(HOSTILE) if draw.randrange(2) else lines[other].partition(": ")[2]
    lines[one] = f"{lines[one].partition(': ')[0]}: {value}"
    return "\n".join(lines)


def _splice(text: str, draw: random.Random) -> str:
    place = draw.randrange(len(text) + 1)
    return text[:place] + draw.choice(HOSTILE) + text[place:]


def _bomb(text: str, draw: random.Random) -> str:
    levels = draw.randrange(2, 12)
    bomb = "".join(f"b{level}: &b{level} [{', '.join([f'*b{level - 1}'] * 9)}]\n" for level in range(1, levels))
    return f"b0: &b0 [x]\n{bomb}{text}"


def _repeat(text: str, draw: random.Random) -> str:
    start = draw.randrange(len(text) + 1)
    return text[:start] + text[start : start + 40] * draw.choice([3, 30, 300]) + text[start:]


def _structure(text: str, draw: random.Random) -> str:
    """Move, copy or replace a node of the tree that was written."""
    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError):
        return _splice(text, draw)
    slots = list(itertools.islice(_slots(tree), 500))
    if not slots:
        return _splice(text, draw)
    for _ in range(draw.randrange(1, 4)):
        (holder, key), (other, other_key) = draw.choice(slots), draw.choice(slots)
        values = [None, True, 0, 3, 10**18, 0.5, "usage < 1", "perplexity < 2", [], ["alert"], "20 steps", "5 readings"]
        try:
            holder[key] = other[other_key] if draw.randrange(3) == 0 else draw.choice(values)
        except (KeyError, IndexError):  # it has gone with what it was in
            continue
    return yaml.safe_dump(tree, allow_unicode=True, sort_keys=False)


def _plausible(text: str, draw: random.Random) -> str:
    """Change a few numbers, fields and signs: most of what comes out is a policy, though none that one would write."""
    others = {
        "field": ("perplexity", "usage", "relative_error", "loss", "dead_fraction"),
        "fraction": ("0.5", "0.000001", "0.999"),
        "number": ("1", "2", "3", "10", "100", "99999999"),
        "sign": (" < ", " >= ", " != "),
    }

    def changed(match: re.Match[str]) -> str:
        return match[0] if draw.randrange(10) else draw.choice(others[match.lastgroup or ""])

    head, _, rest = text.partition("version: 1\n")
    field = r"\b(?P<field>perplexity|usage|relative_error|loss|dead_fraction)\b"
    pattern = field + r"|(?P<fraction>\b0\.\d+)|(?P<number>\b\d+\b)|(?P<sign> [<>]=? )"
    return f"{head}version: 1\n{re.sub(pattern, changed, rest)}"


def _slots(tree: Any, level: int = 0) -> Iterator[tuple[Any, Any]]:
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(inner) if level < 12 else ():
        yield tree, key
        yield from _slots(value, level + 1)


MUTATIONS: tuple[Callable[[str, random.Random], str], ...] = (
    _flip, _flip, _lines, _lines, _scalar, _scalar, _splice, _bomb, _repeat, _structure, _structure, _structure,
    _plausible, _plausible, _plausible, _plausible, _plausible, _plausible,
)  # fmt: skip


def mutants(count: int) -> Iterator[str]:
    """Yield so many damaged policies, the same ones each time; each has one to three wounds."""
    good, bad = texts()
    for seed in range(count):
        draw = random.Random(seed)
        text = bad[seed // 3 % len(bad)] if seed % 3 == 0 else good[seed % len(good)]
        for _ in range(draw.choice([1, 1, 1, 2, 3])):
            text = draw.choice(MUTATIONS)(text, draw)
        yield text


def use(policy: Policy, draw: random.Random) -> None:
    """Do with a policy whatever can be done with one: lint, explain, write out, and a short run on random readings."""
    lint_policy(policy)
    lint_policy(policy, 1024)
    explain_policy(policy)
    again = load_policy(policy.model_dump(mode="json", by_alias=True))
    assert again.with_source(policy.source) == policy, "a policy that was written out and read again is another"
    json.dumps(policy_json_schema())
    engine = PolicyEngine(policy)
    for step in range(0, 60_000, 2000):
        perplexity = draw.choice([1.0, 1.0, 3.0, 100.0, float("nan"), float("inf"), 1e308])
        reading = Reading(
            step=step, codebook=draw.choice(["vq.0", "vq.1"]), K=256, D=8, tokens=10**6, perplexity=perplexity,
            ceiling=250.0, perplexity_ratio=perplexity / 250, usage=draw.random(), dead_fraction=draw.random(),
            top_share=draw.random(), epoch=step // 9000, relative_error=draw.choice([None, 0.1, 1e9]),
            loss=draw.choice([None, 0.0, 1.0, -1.0, 1e308]),
        )  # fmt: skip
        for decision in engine.observe(reading):
            if decision.kind.value == "act":
                engine.report(decision, applied=draw.random() < 0.7, reason="no")
        state = json.loads(json.dumps(engine.state_dict()))
        engine.load_state_dict(state)
    engine.finish(60_000)


class Watch:
    """Notes what Python itself reports as done, by way of an audit hook, while it is on."""

    allowed = ("open", "os.listdir", "os.scandir", "pathlib.Path.glob", "glob.glob", "object.__getattr__", "time.sleep")
    harmless = ("sys._getframe", "builtins.id", "marshal", "code.__new__", "gc.", "re", "sys.unraisablehook")

    def __init__(self, home: Path) -> None:
        self.seen: Counter[str] = Counter()
        self.homes = (str(home), str(ROOT / "policies"))
        self.is_on = False
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Take note of an event."""
        if not self.is_on or event.startswith(self.harmless):
            return
        if event == "open":
            path, mode, flags = arguments
            reads_only = not flags & 0b11 and not set(mode or "r") & set("wax+")
            if reads_only and str(path).startswith(self.homes):
                return
            event = f"open {path} {mode}"
        elif event in self.allowed:
            return
        self.seen[f"{event} {arguments!r}"[:200]] += 1


def examine(count: int) -> dict[str, Any]:
    """Load every mutant, use those that are policies; return what went wrong, the slowest, and the counts."""
    findings: dict[str, Any] = {"accepted": 0, "refused": 0, "wrong": [], "slowest": [0.0, -1]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mutant.yaml"
        known: list[str | Path] = [*preset_names(), *DATA.glob("*.yaml"), DATA, "gone"]
        for source in known:  # whatever is imported late is imported now
            try:
                use(load_policy(source), random.Random(0))
            except PolicyError:
                continue
        watch = Watch(Path(folder))
        for seed, text in enumerate(mutants(count)):
            path.write_bytes(text.encode("utf-8", "surrogatepass"))
            if wrong := _wrong_with(path, seed, watch, findings):
                findings["wrong"].append([seed, wrong])
    return findings | {"started": dict(watch.seen)}


def _wrong_with(path: Path, seed: int, watch: Watch, findings: dict[str, Any]) -> str:
    """Load one mutant, and return what went wrong, if anything did."""
    start = time.process_time()
    watch.is_on = True
    try:
        policy = load_policy(path)
    except PolicyError as error:
        policy = None
        findings["refused"] += 1
        if nowhere := [str(each) for each in error.problems if each.line is None and each.message != "file"]:
            return f"no line: {nowhere[0]}"
    except Exception as error:
        return f"loading: {type(error).__name__}: {error}"[:300]
    finally:
        watch.is_on = False
        findings["slowest"] = max(findings["slowest"], [time.process_time() - start, seed])
    if policy is None:
        return ""
    findings["accepted"] += 1
    watch.is_on = True
    try:
        use(policy, random.Random(seed))
    except Exception as error:
        return f"using: {type(error).__name__}: {error}"[:300]
    finally:
        watch.is_on = False
    return ""


if __name__ == "__main__":
    sys.stdout.write(json.dumps(examine(int(sys.argv[1]))))
