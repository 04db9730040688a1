"""Stable Diffusion v1.4 at full size with random weights: loaded, edited by ESD-x, saved, measured."""

import resource
from pathlib import Path
from typing import Any

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

    assert len(metrics.losses) == 2
    assert all(".attn2." in name for name in delta.tensors)
    assert sum(tensor.numel() for tensor in delta.tensors.values()) == ATTN2_PARAMETERS
    delta.save(tmp_path / "delta.safetensors")
    change = weight_change(base, Delta.load(tmp_path / "delta.safetensors"))
    assert change.unet.parameters == 859_520_964
    assert change.unet.challenge == pytest.approx(change.unet.global_l2 / 859_520_964)
    assert 0 < change.unet.changed_tensors <= len(delta.tensors)


# Two steps of two short roll-outs, or on two images, and the trained numbers: 16 layers of cross-attention as above, or
# what the adapters and erasers of their layers come to.
FINE_TUNED: dict[str, tuple[dict[str, Any], int]] = {
    "fmn": ({"group": "xattn", "images": 2, "image_steps": 2}, ATTN2_PARAMETERS),
    "sdd": ({"rollout_steps": 2}, ATTN2_PARAMETERS),
    "salun": (
        {"group": "xattn", "batch_size": 1, "images": 2, "remain_images": 2, "image_steps": 2, "select_batches": 1},
        ATTN2_PARAMETERS,
    ),
    "spm": ({"rollout_steps": 2, "anchor_count": 2, "sizes": None}, 423_936),
    "eap": ({"rollout_steps": 2, "vocabulary": "concepts"}, ATTN2_PARAMETERS),
    "age": ({"rollout_steps": 2, "vocabulary": "concepts"}, ATTN2_PARAMETERS),
    "receler": ({"rollout_steps": 2, "adversary_steps": 2}, 3_209_408),
    "race": ({"variant": "x", "clean_steps": 1, "rollout_steps": 2, "adversary_steps": 1}, ATTN2_PARAMETERS),
    "aegis": ({"variant": "x", "rollout_steps": 2}, ATTN2_PARAMETERS),
    "stereo": (
        {
            "group": "xattn",
            "rounds": 1,
            "search_steps": 1,
            "inversion_steps": 1,
            "images": 1,
            "image_steps": 2,
            "rollout_steps": 2,
        },
        ATTN2_PARAMETERS,
    ),
    "advunlearn": (
        {"rollout_steps": 2, "clean_steps": 1, "adversary_steps": 1, "retain_batch": 1},
        12 * 7_087_872 + 1536,  # layers, and the last norm
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", FINE_TUNED)
def test_two_steps_of_every_fine_tuner_at_full_size(method: str) -> None:
    base = load_base(read_base("sd-v1-4-random").model_copy(update={"image_size": 64}))
    concepts = load_concept_set("genmu-2025")
    config, trained = FINE_TUNED[method]
    job = make_job(base.spec.name, base.fingerprint, method, concepts, ["Van Gogh"], config={"steps": 2, **config})
    delta, metrics = run_job(job, base, concepts)
    assert len(metrics.losses) == 2
    assert sum(value.numel() for name, value in delta.tensors.items() if not name.endswith(".alpha")) == trained
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 16 * 2**20  # KiB
