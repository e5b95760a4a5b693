"""`collapse-guard rehearse`: a policy against collapses that are made on purpose, before a real one comes."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import Format, complain, folded, policy_from, say, say_json

if TYPE_CHECKING:
    from collapse_guard.testing import Injection, Rehearsal

__all__ = ["rehearse"]

_LASTS = 200  # steps that an injection lasts; a broken update lasts to the end


class _What(str, Enum):
    none = "none"
    scale = "scale"
    point_mass = "point_mass"
    starve = "starve"
    noise = "noise"
    freeze = "freeze"
    nan = "nan"


_USUAL = (_What.none, _What.scale, _What.point_mass, _What.starve, _What.noise)


def rehearse(
    policy: Annotated[str, typer.Argument(metavar="POLICY", help="YAML file or preset name.")],
    what: Annotated[
        list[_What] | None, typer.Option("--inject", help="What to inject; may be repeated. The usual five otherwise.")
    ] = None,
    at: Annotated[int | None, typer.Option(min=1, metavar="STEP", help="When; after warm-up otherwise.")] = None,
    lasting: Annotated[
        int | None, typer.Option("--for", min=1, metavar="STEPS", help="How long; scale to the end, others 200 steps.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps of each rehearsal.")] = None,
    codes: Annotated[int, typer.Option(min=2, metavar="K", help="Number of codes.")] = 64,
    seed: Annotated[int, typer.Option(help="Of data, weights and injection.")] = 0,
    output: Annotated[Format, typer.Option("--format", help="text, or json for other programs.")] = Format.text,
) -> None:
    """Train a small model, spoil its codebook, and say what the policy did. Exits with 1 if that was not enough."""
    import torch

    from collapse_guard.testing import rehearse as run
    from collapse_guard.testing.rehearsal import steps_for

    chosen = policy_from(policy)
    began, enough = steps_for(chosen)
    began = at if at is not None else began
    steps = steps if steps is not None else max(enough, began + enough // 2)
    if began >= steps:
        complain(f"expected an injection before the last of {steps} steps, got one at {began}. Give --steps or --at.")
    torch.set_num_threads(1)  # the matrices are small: more threads would only wait for each other
    results: dict[str, Rehearsal] = {}
    for each in what or _USUAL:
        injection = _injection(each, began, steps, lasting)
        results[each.value] = run(chosen, injection, steps=steps, codes=codes, seed=seed)
        if output is Format.text:
            for line in _told(each.value, results[each.value]):
                say(line)
    if output is Format.json:
        say_json({"policy": chosen.name, "mode": chosen.mode, "rehearsals": _as_json(results)})
    raise typer.Exit(0 if all(result.holds for result in results.values()) else 1)


def _injection(what: _What, began: int, steps: int, lasting: int | None) -> Injection | None:
    from collapse_guard.testing import Injection

    if what is _What.none:
        return None
    if lasting is None:
        lasting = steps if what is _What.scale else _LASTS
    return Injection(what.value, at=began, until=began + lasting)


def _told(name: str, result: Rehearsal) -> list[str]:
    """Say what came of one rehearsal."""
    mark = "ok" if result.holds else "FAILED"
    course = f"perplexity {result.before:.1f} > {result.lowest:.1f} > {result.last:.1f}"
    lines = [f"{mark:<7} {name:<11} {result.verdict} ({course})"]
    lines += [f"          step {act['step']:>6}  {act['action']}: {act['result']}" for act in result.interventions]
    faults = [event.fields for event in result.events if event.event == "fault"]
    lines += [folded(f"          fault: {each['where']}: {each['reason']}", hanging=12) for each in faults]
    return lines


def _as_json(results: dict[str, Rehearsal]) -> list[dict[str, Any]]:
    return [
        {
            "inject": name,
            "injection": asdict(result.injection) if result.injection is not None else None,
            "holds": result.holds,
            "verdict": result.verdict,
            "began": result.began,
            "seen": result.seen,
            "false_alarm": result.false_alarm,
            "perplexity": {"before": result.before, "lowest": result.lowest, "last": result.last},
            "interventions": result.interventions,
        }
        for name, result in results.items()
    ]
