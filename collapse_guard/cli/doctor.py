"""`collapse-guard doctor`: which codebooks of a model would be guarded, and what a policy could do there.

The model is built and looked at, on its own device; it is neither trained nor changed. Its own code runs, as it would
in training: that of the module that is named, and that of the factory.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from collapse_guard.policies import Policy

from .console import Format, complain, folded, policy_from, say, say_json

__all__ = ["doctor"]

_EXPECTED = "expected MODULE:FACTORY, such as mymodels:build or train.py:build, where build() returns the model"


def doctor(
    target: Annotated[
        str,
        typer.Argument(metavar="MODULE:FACTORY", help="What builds the model: package.module:name or file.py:name."),
    ],
    policy: Annotated[str, typer.Option(metavar="POLICY", help="YAML file or preset name.")] = "default",
    output: Annotated[Format, typer.Option("--format", help="text, or json for other programs.")] = Format.text,
) -> None:
    """Show which codebooks of a model are found, what is supported on each, and which rungs of a policy are.

    FACTORY is called without arguments and returns the model, or the model and descriptions of quantizers:
    (model, {"path": GenericVQ(...)}). Exits with 1 if no codebook is found, or if a rule with a ladder can repair
    nothing on one of them.
    """
    loaded = policy_from(policy)
    model, described = _build(target)
    report: dict[str, Any] = {"target": target, "model": type(model).__name__} | _examine(model, described, loaded)
    if output is Format.json:
        say_json(report)
    else:
        _print(report)
    ladders: list[dict[str, Any]] = report["ladders"]
    raise typer.Exit(0 if report["codebooks"] and not any(each["powerless_on"] for each in ladders) else 1)


def _examine(model: Any, described: Mapping[str, Any], policy: Policy) -> dict[str, Any]:
    """Return what there is to say, as plain data."""
    from collapse_guard.adapters import survey
    from collapse_guard.interventions import ladders_on
    from collapse_guard.reports import describe_unrecognised, describe_views
    from collapse_guard.window import Window

    try:
        found = survey(model, described)
    except ValueError as error:
        complain(f"a description does not fit the model: {error}")
    codebooks = [
        record | {"bytes": Window(view.K, view.D).nbytes}
        for record, view in zip(describe_views(found.views), found.views, strict=True)
    ]
    return {
        "policy": policy.name,
        "mode": policy.mode,
        "codebooks": codebooks,
        "unrecognised": describe_unrecognised(found.unrecognised),
        "ladders": [
            {
                "rule": ladder.rule,
                "codebooks": list(ladder.codebooks),
                "rungs": [
                    {"rung": rung.rung, "acts": rung.acts, "refused": rung.refused, "moot": sorted(rung.moot)}
                    for rung in ladder.rungs
                ],
                "powerless_on": list(ladder.powerless_on),
            }
            for ladder in ladders_on(policy, found.views)
        ],
    }


def _print(report: Mapping[str, Any]) -> None:
    from rich.console import Console

    from collapse_guard.events import Event
    from collapse_guard.sinks import ConsoleSink

    if not report["codebooks"]:
        say(f"{report['target']}: found no quantizer to guard in {report['model']}.")
        for item in report["unrecognised"]:
            say(folded(f"  not watched: {item['name']}: {item['reason']}", hanging=4))
            if item["advice"]:
                say(folded(f"    {item['advice']}", hanging=4))
        _print_known()
        return
    ConsoleSink(Console()).write(Event("attached", 0, report))
    total = sum(book["bytes"] for book in report["codebooks"])
    say(f"             memory        {_size(total)} of recent latents, on the device of the codebooks\n")
    say(f"What the ladders of policy {report['policy']} can do here:")
    told = {(book["name"], why) for book in report["codebooks"] for why in book["lacks"].values()}
    for ladder in report["ladders"]:
        if ladder["rungs"]:
            _print_ladder(ladder, len(report["codebooks"]), told)


def _print_known() -> None:
    from collapse_guard.adapters import adapters

    say("Recognised by themselves:")
    for adapter in adapters():
        say(folded(f"  - {adapter.name}: {adapter.covers}", hanging=4))
    say("Return any other with its description from the factory:")
    say("  return model, {'path.to.quantizer': GenericVQ(table='embedding.weight', codes=lambda output: output[1])}")


def _print_ladder(ladder: Mapping[str, Any], count: int, told: set[tuple[str, str]]) -> None:
    """Print what each rung can do; a reason that stands with its codebook already is not said again."""
    books = ladder["codebooks"]
    whose = "" if len(books) == count else f", on {_names(books) if books else 'no codebook of this model'}"
    say(folded(f"  {ladder['rule']}{whose}", hanging=4))
    for number, rung in enumerate(ladder["rungs"], 1):
        fine = [book for book in books if book not in rung["refused"]]
        no = "not needed" if set(books) <= set(rung["moot"]) else "no"
        verdict = "yes" if len(fine) == len(books) else f"yes on {_names(fine)}" if fine else no
        if fine and rung["refused"]:
            verdict += f"; no on {_names(rung['refused'])}"
        say(folded(f"    {number}. {rung['rung'].partition('(')[0]}: {verdict}", hanging=7))
        news = {why for book, why in rung["refused"].items() if (book, why) not in told}
        for why in sorted(news):
            names = [book for book, reason in rung["refused"].items() if reason == why]
            say(folded(f"       {_names(names)}: {why}", hanging=9))
        told |= {(book, why) for book, why in rung["refused"].items()}
    if ladder["powerless_on"]:
        say(folded(f"    repairs nothing on {_names(ladder['powerless_on'])}: there it can only tell", hanging=6))


def _names(names: Iterable[str]) -> str:
    """Write names shortly: those that differ in a last number are drawn together.

    >>> _names(["vq", "rvq.layers.0", "rvq.layers.1", "rvq.layers.2"])
    'vq, rvq.layers.0-2'
    """
    runs: list[tuple[str, int, int]] = []
    for name in names:
        stem, dot, last = name.rpartition(".")
        number = int(last) if last.isdecimal() else -1
        key = f"{stem}{dot}" if number >= 0 else name
        if runs and number > 0 and (runs[-1][0], runs[-1][2]) == (key, number - 1):
            runs[-1] = (key, runs[-1][1], number)
        else:
            runs.append((key, number, number))
    texts = (
        key if first < 0 else f"{key}{first}" if first == last else f"{key}{first}-{last}" for key, first, last in runs
    )
    return ", ".join(texts)


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def _build(target: str) -> tuple[Any, Mapping[str, Any]]:
    """Return the model that a factory builds, and the descriptions that came with it; complain where it does not."""
    from torch import nn

    place, _, name = target.rpartition(":")
    if not place or not name:
        complain(f"{target}: {_EXPECTED}.")
    factory = _named(_imported(target, place), target, name)
    built = _tried(f"{target}: {name}() raised", factory) if not isinstance(factory, nn.Module) else factory
    model, described = built if isinstance(built, tuple) and len(built) == 2 else (built, {})
    if not isinstance(model, nn.Module) or not isinstance(described, Mapping):
        shown = type(model).__name__ if isinstance(described, Mapping) else f"a pair with a {type(described).__name__}"
        complain(f"{target}: expected a torch.nn.Module, or (module, descriptions), got {shown}.")
    return model, described


def _imported(target: str, place: str) -> Any:
    path = Path(place)
    if path.suffix == ".py":
        if not path.is_file():
            complain(f"{target}: there is no file {place}. {_EXPECTED[0].upper()}{_EXPECTED[1:]}.")
        sys.path.insert(0, str(path.parent.resolve()))
        place = path.stem
    else:
        sys.path.insert(0, str(Path.cwd()))
    return _tried(f"{target}: importing {place} raised", lambda: importlib.import_module(place))


def _named(module: Any, target: str, name: str) -> Callable[[], Any]:
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            have = [key for key, value in vars(found).items() if callable(value) and not key.startswith("_")]
            complain(f"{target}: {module.__name__} has no {name!r}; it has: {', '.join(have) or 'nothing to call'}.")
        found = getattr(found, part)
    if not callable(found):
        complain(f"{target}: {name} cannot be called ({type(found).__name__}); {_EXPECTED}.")
    result: Callable[[], Any] = found
    return result


def _tried(what: str, call: Callable[[], Any]) -> Any:
    """Run code of the user; what it raises is told in one line, with the place where it was raised."""
    try:
        return call()
    except Exception as error:  # any: it is the user's code
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        where = f" ({frame.tb_frame.f_code.co_filename}:{frame.tb_lineno})" if frame is not None else ""
        hint = "; FACTORY takes no arguments: wrap it in a function that gives them" if "argument" in str(error) else ""
        complain(f"{what} {type(error).__name__}: {error}{where}{hint}.")
