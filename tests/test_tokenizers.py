"""What outlives a run: the fallback in force at its end, saved as a tokenizer that encodes as the model did."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from collapse_guard import Guard, read_events
from collapse_guard.kmeans import KMeansTokenizer
from tests.loops import Recorder, digits_model, train

STEPS = 140  # the fallback stands from step 80 on, and is refitted at 130


def test_a_fallback_is_saved_at_the_end_and_encodes_as_the_model_did(tmp_path: Path) -> None:
    recorder, model = Recorder(), digits_model()
    with Guard("default", console=False, sinks=[recorder], log_dir=tmp_path) as guard:
        with pytest.raises(ValueError, match=r"is in force \(none here\), got 'quantizer'; to make a tokenizer"):
            guard.tokenizer("quantizer")
        train(model, STEPS, guard)
        during = guard.tokenizer("quantizer")
    (tended,) = recorder.of("tended")
    # The encoder has only begun to learn; of an unmatched refit nearly all ids would be others.
    assert 0 < tended.fields["ids_changed"] < 0.75 * tended.fields["ids_compared"]
    assert f"{tended.fields['ids_changed']} of {tended.fields['ids_compared']} ids changed" in tended.fields["summary"]
    (summary,) = [each for each in read_events(tmp_path) if each["event"] == "summary"]
    place = Path(summary["tokenizers"]["quantizer"])
    assert place.parent == tmp_path / "collapse_guard" / "tokenizers"
    loaded = KMeansTokenizer.load(place)
    assert loaded.version == tended.fields["codebook_version"]
    origin = {"made_by": "fallback_tokenizer", "codebook": "quantizer", "since_step": 80}
    assert loaded.provenance == origin | {"until_step": STEPS}
    latents = torch.nn.functional.normalize(torch.randn(500, loaded.D), dim=-1)
    table = model.state_dict()["quantizer.codebook"]
    expected = torch.cdist(latents.double(), table.double()).argmin(dim=1)
    for tokenizer in (loaded, during, guard.tokenizer("quantizer")):
        assert torch.equal(tokenizer.encode(latents), expected)


def test_a_tokenizer_that_cannot_be_saved_is_a_fault_and_no_more(tmp_path: Path) -> None:
    recorder, model = Recorder(), digits_model()
    (tmp_path / "collapse_guard").mkdir()
    (tmp_path / "collapse_guard" / "tokenizers").write_text("in the way")
    with Guard("default", console=False, sinks=[recorder], log_dir=tmp_path) as guard:
        train(model, 90, guard)
    (fault,) = recorder.of("fault")
    assert fault.fields["where"] == "quantizer"
    assert "its fallback tokenizer could not be saved in" in fault.fields["reason"]
    assert recorder.of("summary")[0].fields["tokenizers"] == {}
    assert guard.tokenizer("quantizer").K == 256
