"""The arms of the zoo: what is done about a collapse, from nothing to the healthy twin that never had one."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collapse_guard.policies import Policy, load_policy

from .scenario import Run, Scenario

__all__ = ["ARMS", "DENSE", "Arm", "arm_named", "blunt_policy", "policy_arm", "random_policy"]


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to train a scenario.

    Attributes:
        name: short. says: what it is.
        variant: `cause`, `twin`, `sound` or `own`: which options the quantizer gets, and whether the cause is there.
        family: of the quantizer that stands in for the scenario's own; empty for its own.
        options: of the quantizer, over the scenario's.
        policy: of the guard: a preset, a file or a mapping; `None` for no guard.
        answers: returns the policy `default` with other ladders, given a text that seeds what is drawn; or `None`.
        is_peer: whether it is a prevention that guarded arms are compared with.
        most_seeds: with how many a scenario is run at most, where more would show nothing new; `None` for all.
        most_on_controls: the same for a healthy control.
    """

    name: str
    says: str
    variant: str = "cause"
    family: str = ""
    options: tuple[tuple[str, Any], ...] = ()
    policy: str | Path | Mapping[str, Any] | None = None
    answers: Callable[[str], Policy] | None = None
    is_peer: bool = False
    most_seeds: int | None = None
    most_on_controls: int | None = None

    @property
    def has_cause(self) -> bool:
        """Whether what goes wrong is there."""
        return self.variant not in ("twin", "sound")

    @property
    def fingerprint(self) -> str:
        """Return what tells this arm's policy from a changed one; empty where it has none of its own."""
        policy = "default" if self.answers is not None else self.policy
        return load_policy(policy).fingerprint() if policy is not None else ""

    def options_of(self, scenario: Scenario) -> dict[str, Any]:
        """Return the options of the quantizer; none of one that stands in the scenario's place."""
        return {} if self.family else scenario.options_of(self.variant) | dict(self.options)

    def start_of(self, scenario: Scenario) -> Callable[[Run], None] | None:
        """Return what prepares the model; `None` where another quantizer stands in the scenario's place."""
        return None if self.family else scenario.start_of(has_cause=self.has_cause)

    def policy_of(self, scenario: Scenario, seed: int) -> Policy | None:
        """Return the guard's policy in one run; `None` for no guard.

        Raises:
            PolicyError: a policy file that is not valid.
        """
        if self.answers is not None:
            return self.answers(f"{scenario.name} {seed}")
        return load_policy(self.policy) if self.policy is not None else None

    def applies_to(self, scenario: Scenario, seed: int = 0) -> bool:
        """Whether it makes sense: whether there is such an option, and anything to prevent, to rescue or to learn."""
        most = self.most_seeds if scenario.is_collapse or self.most_on_controls is None else self.most_on_controls
        if most is not None and seed >= most:
            return False
        if self.name == "dense":
            return not scenario.is_collapse
        if not scenario.is_collapse:
            return self.name == "nothing" or self.policy is not None
        if self.variant == "own" and scenario.own is None:
            return False
        if self.family:
            return scenario.family != "rvq"
        return not self.options or scenario.family in ("vq", "rvq")


DENSE: Mapping[str, Any] = {
    "version": 1,
    "name": "default, read each ten steps",
    "extends": "default",
    "sample": {"every": "10 steps", "when_suspect": "10 steps"},
}
"""The default policy with five times the readings, as dense as `default` itself reads where it suspects something."""


_FOR_THE_OPTIMIZER = ("stale_moments", "set_back")
"""Rules whose answer the random and the blunt arm leave as it is, in their own favour."""


def random_policy(seed: str) -> Policy:
    """Return the policy `default` with random ladders: it acts when `default` does, and does anything.

    Every rung is drawn anew, from all actions of `default` that are not for one kind of quantizer or one cause alone;
    each is equally likely, and so is none. What fails is not undone, but the next rung has its turn, as with `default`.
    Until the first action both are the same, and the optimizer begins anew where `default` sees that it must.

    Args:
        seed: of the draw.
    """
    draw = random.Random(seed)
    rules = [
        {"name": rule.name, "verify": {"undo": "never"}, "ladder": _random_ladder(draw, len(rule.ladder))}
        for rule in load_policy("default").rules
        if rule.ladder and rule.name not in _FOR_THE_OPTIMIZER
    ]
    return load_policy({"version": 1, "name": "random", "extends": "default", "rules": rules})


def blunt_policy(seed: str) -> Policy:
    """Return the policy `default` with the same answer to everything: all codes are placed anew, at random latents.

    No cause is asked for, nothing is undone, and nothing else is tried, but the optimizer begins anew as in `default`.

    Args:
        seed: nothing is drawn.
    """
    rules = [
        {
            "name": rule.name,
            "verify": {"undo": "never"},
            "ladder": [{"reset_codes": {"scope": "all", "source": "reservoir"}}],
        }
        for rule in load_policy("default").rules
        if rule.ladder and rule.name not in (*_FOR_THE_OPTIMIZER, "half_repaired")
    ]
    gone = {"name": "half_repaired", "remove": True}
    return load_policy({"version": 1, "name": "blunt", "extends": "default", "rules": [*rules, gone]})


def _random_ladder(draw: random.Random, rungs: int) -> list[dict[str, Any]]:
    """Return rungs that differ, as those of any ladder must."""
    ladder: list[dict[str, Any]] = []
    while len(ladder) < rungs:
        rung = _random_action(draw)
        if rung not in ladder:
            ladder.append(rung)
    return ladder


def _random_action(draw: random.Random) -> dict[str, Any]:
    scope, source = draw.choice(("dead", "all")), draw.choice(("kmeans", "reservoir", "distortion"))
    return draw.choice(
        [
            {"alert": {}},
            {"reset_codes": {"scope": scope, "source": source}},
            {"decay_commitment": {"factor": round(draw.uniform(0.1, 0.9), 2)}},
            {"upkeep": {"most": round(draw.uniform(0.05, 0.5), 2)}},
            {"fallback_tokenizer": {}},
            {
                "take_over_updates": {
                    "start": draw.choice(("kmeans", "reservoir")),
                    "decay": round(draw.uniform(0.9, 0.99), 2),
                }
            },
            {"restart_optimizer": {}},
        ]
    )


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("twin", "healthy twin: the cause is not there", variant="twin"),
        Arm("sound", "the cause is not there, nor any replacement of dead codes", variant="sound"),
        Arm("nothing", "nothing is done", most_on_controls=1),
        Arm("observe", "the guard only looks", policy="observe", most_seeds=1),  # bit for bit as if nothing were done
        Arm("default", "the policy `default`", policy="default"),
        Arm("upkeep", "the policy `upkeep`: `default`, and idle codes are moved", policy="upkeep", most_seeds=1),
        Arm("random", "`default` with random actions in its ladders", answers=random_policy),
        Arm(
            "blunt",
            "`default` with a reset of all codes for every trouble, never undone",
            answers=blunt_policy,
            most_seeds=1,
        ),
        Arm("own", "the package's own prevention: k-means start, dead codes replaced", variant="own", is_peer=True),
        Arm(
            "rotation",
            "the rotation trick beside the package's own prevention",
            variant="own",
            options=(("rotation_trick", True),),
            is_peer=True,
        ),
        Arm("simvq", "SimVQ in place of the quantizer", family="simvq", is_peer=True),
        Arm("fsq", "FSQ in place of the quantizer", family="fsq", is_peer=True),
        Arm("dense", "controls only: `default`, read each ten steps", policy=DENSE, most_seeds=4),
    )
}
"""Name -> arm; in this order they are run."""


def policy_arm(path: Path) -> Arm:
    """Return the arm of somebody's own policy file.

    Raises:
        PolicyError: the file is no valid policy; every mistake is listed.
    """
    return Arm(f"policy:{load_policy(path).name}", f"the policy of {path.name}", policy=path)


def arm_named(name: str) -> Arm:
    """Return an arm by its name, or the arm of a policy file by its path.

    Raises:
        LookupError: neither an arm nor a file.
    """
    if name in ARMS:
        return ARMS[name]
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise LookupError(f"expected a policy file, and there is none at {path.absolute()}")
        return policy_arm(path)
    raise LookupError(f"expected one of {', '.join(ARMS)}, or a policy file, got {name!r}")
