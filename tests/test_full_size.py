"""Stable Diffusion v1.4 at full size with random weights: loaded, edited by ESD-x, saved, measured."""

from pathlib import Path

import pytest

from efface.concepts.concept import load_concept_set
from efface.eval.metrics.weight_change import weight_change
from efface.models.base import load_base, read_base
from efface.models.delta import Delta
from efface.train.job import make_job
from efface.train.run_job import run_job

ATTN2_PARAMETERS = 43_962_560
"""16 layers: q C x C, k and v C x 768, out C x C + C, with C = 320 five, 640 five and 1280 six times."""


@pytest.mark.slow
def test_two_steps_of_esd_x_at_full_size_change_only_the_cross_attention(tmp_path: Path) -> None:
    base = load_base(read_base("sd-v1-4-random").model_copy(update={"image_size": 64}))
    assert sum(parameter.numel() for parameter in base.unet.parameters()) == 859_520_964
    concepts = load_concept_set("genmu-2025")
    config = {"steps": 2, "rollout_steps": 2, "variant": "x"}
    job = make_job(base.spec.name, base.fingerprint, "esd", concepts, ["Van Gogh"], config=config)

    delta, metrics = run_job(job, base, concepts)

    assert len(metrics["losses"]) == 2
    assert all(".attn2." in name for name in delta.tensors)
    assert sum(tensor.numel() for tensor in delta.tensors.values()) == ATTN2_PARAMETERS
    delta.save(tmp_path / "delta.safetensors")
    change = weight_change(base, Delta.load(tmp_path / "delta.safetensors"))
    assert change["unet"]["parameters"] == 859_520_964
    assert change["unet"]["challenge"] == pytest.approx(change["unet"]["global_l2"] / 859_520_964)
    assert 0 < change["unet"]["changed_tensors"] <= len(delta.tensors)
