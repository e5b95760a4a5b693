"""`collapse-guard check`: every mistake of a policy file, before it may touch anything."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Annotated, Any

import typer

from collapse_guard.policies import PolicyError, lint_policy, load_policy, policy_text, position_in

from .console import Format, is_source, missing, say, say_json

__all__ = ["check"]

_WIDEST = 100
_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")  # what YAML takes for the end of a line


def check(
    policies: Annotated[list[str], typer.Argument(metavar="POLICY...", help="YAML files or preset names.")],
    codes: Annotated[int | None, typer.Option(min=1, metavar="K", help="Number of codes that it is for.")] = None,
    commitment: Annotated[
        float | None, typer.Option(min=0, metavar="VALUE", help="Commitment weight of the model that it is for.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 for warnings, too.")] = False,
    output: Annotated[Format, typer.Option("--format", help="text, or json for other programs.")] = Format.text,
) -> None:
    """Check policy files and report every error and warning with its line. Exits with 1 if any has errors."""
    reports = [_report(source, codes, commitment) for source in policies]
    if output is Format.json:
        say_json({"policies": reports})
    else:
        for report in reports:
            _print(report)
    unusable = any(report["missing"] for report in reports)
    wrong = any(report["errors"] or (strict and report["warnings"]) for report in reports)
    raise typer.Exit(2 if unusable else 1 if wrong else 0)


def _report(source: str, codes: int | None, commitment: float | None) -> dict[str, Any]:
    """Return what there is to say about one policy, as plain data."""
    report: dict[str, Any] = {"source": source, "missing": False, "summary": "", "errors": [], "warnings": []}
    if not is_source(source):
        return report | {"missing": True}
    try:
        policy = load_policy(source)
    except PolicyError as error:
        return report | {"errors": [asdict(problem) | {"text": str(problem)} for problem in error.problems]}
    rules = ", ".join(rule.name for rule in policy.rules)
    text = policy_text(source) or ""
    warnings = []
    for finding in lint_policy(policy, codes, commitment):
        line, column = position_in(text, finding)
        place = source if line is None else f"{source}:{line}:{column}"
        where = {"file": source, "line": line, "column": column, "rule": finding.rule or None}
        words = {"kind": finding.kind, "message": finding.message, "hint": finding.hint}
        warnings.append(where | words | {"text": f"{place}: warning: {finding}"})
    return report | {"summary": f"{policy.name}, mode {policy.mode}, rules {rules}", "warnings": warnings}


def _print(report: dict[str, Any]) -> None:
    source = report["source"]
    if report["missing"]:
        say(missing(source))
        return
    for each in (*report["errors"], *report["warnings"]):
        say(each["text"])
        if each["line"] is not None and (excerpt := _excerpt(each["file"], each["line"], each["column"])):
            say(excerpt)
    if report["errors"]:
        return
    count = len(report["warnings"])
    verdict = "fine" if not count else "1 warning" if count == 1 else f"{count} warnings"
    say(f"{source}: {verdict}: {report['summary']}")


def _excerpt(file: str, line: int, column: int) -> str:
    """Return the offending line with its number and, below it, a mark where the trouble begins."""
    lines = _BREAK.split(policy_text(file) or "")
    if line > len(lines):
        return ""
    written = lines[line - 1]
    shown = "".join(letter if letter.isprintable() else " " for letter in written)
    if len(shown) > _WIDEST:
        start = max(0, column - _WIDEST // 2)
        shown, column = shown[start : start + _WIDEST], column - start
    return f"  {line:>4} | {shown}\n       | {' ' * (column - 1)}^"
