"""What a policy can do on a model is said before it trains."""

from __future__ import annotations

import pytest
from torch import nn
from vector_quantize_pytorch import FSQ, VectorQuantize

from collapse_guard import Guard, discover
from collapse_guard.interventions import INTERVENTIONS, ladders_on
from collapse_guard.policies import load_policy
from tests.loops import Recorder


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vq = VectorQuantize(dim=8, codebook_size=16, learnable_codebook=True, ema_update=False)
        self.fsq = FSQ([5, 4, 3])


def test_each_rung_is_refused_where_a_capability_is_missing_and_nowhere_else() -> None:
    ladders = {ladder.rule: ladder for ladder in ladders_on(load_policy("default"), discover(Two()).views)}
    assert [set(rung.refused) for rung in ladders["collapsing"].rungs] == [
        {"vq", "fsq"},
        {"fsq"},
        {"fsq"},
        {"vq", "fsq"},
        {"fsq"},
    ]
    assert ladders["collapsing"].powerless_on == ("fsq",)
    assert ladders["non_finite"].rungs == ()
    assert ladders["non_finite"].powerless_on == ()


def test_a_ladder_that_only_tells_or_asks_is_not_powerless() -> None:
    rules = [{"name": "low", "when": "perplexity < 2", "ladder": ["alert", "stop_training"]}]
    (ladder,) = ladders_on(load_policy({"version": 1, "name": "mine", "rules": rules}), discover(Two()).views)
    assert [(rung.acts, rung.refused) for rung in ladder.rungs] == [(False, {}), (False, {})]
    assert ladder.powerless_on == ()


def test_a_run_says_at_its_start_where_it_can_only_tell(capsys: pytest.CaptureFixture[str]) -> None:
    recorder = Recorder()
    with Guard("default", sinks=[recorder]) as guard:
        guard.attach(Two())
    (attached,) = recorder.of("attached")
    rules = ["collapsed", "astray", "reshaped", "unspread", "collapsing", "outgrown", "fallen", "misled"]
    rules += ["unused", "unfitted", "half_repaired", "hasty"]
    rules += ["overcommitted", "outweighed", "standing"]
    weighed = ("overcommitted", "outweighed")  # of the other, too: it has no commitment
    assert attached.fields["powerless"] == {rule: ["vq", "fsq"] if rule in weighed else ["fsq"] for rule in rules}
    said = " ".join(capsys.readouterr().out.split())
    assert f"only told fsq: nothing in the ladders of {', '.join(rules)} can repair it" in said


def test_every_intervention_names_capabilities_that_exist() -> None:
    from collapse_guard.adapters import CAPABILITIES

    for intervention in INTERVENTIONS.values():
        assert set(intervention.needs) <= set(CAPABILITIES)
        assert ("reset" in intervention.needs) == ("codebook" in intervention.touches)
