"""Stable Diffusion v1.4 at full size with random weights: two steps of what trains, two steps of an image under a hook.

Solves of closed forms are in `train/test_full_size_closed_forms.py`. Where the papers train everything, or all but
the cross-attention, Adam's state does not fit into 16 GiB (the sum is in docs/methods.md, "At full size"): FMN,
SalUn, STEREO and AEGIS train the cross-attention here, and ESD-u and FMN also the papers' weights, by SGD.
"""

import resource
from pathlib import Path
from typing import Any

import pytest

from efface.concepts.concept import load_concept_set
from efface.eval.metrics.weight_change import weight_change
from efface.models.base import Base, load_base, read_base
from efface.models.delta import Delta
from efface.models.recipe import load_recipe
from efface.models.sampling.sampler import ImageRequest, sample
from efface.train.job import make_job
from efface.train.method import get_method
from efface.train.run_job import run_job
from efface.train.training_metrics import TrainingMetrics

ATTN2_PARAMETERS = 43_962_560
KV_PARAMETERS = 2 * 768 * 12_480
ADAPTER_PARAMETERS = 423_936
"""16 layers: q C x C, k and v C x 768, out C x C + C, with C = 320 five, 640 five and 1280 six times."""


TEXT_LAYER_PARAMETERS = 7_087_872


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base(read_base("sd-v1-4-random").model_copy(update={"image_size": 64}))


@pytest.mark.slow
def test_two_steps_of_esd_x_at_full_size_change_only_the_cross_attention(base: Base, tmp_path: Path) -> None:
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
    assert peak_gib() < 16


# Two steps of two short roll-outs, or on two images, and the trained numbers: 16 layers of cross-attention as above, or
# what the adapters and erasers of their layers come to.
FINE_TUNED: dict[str, tuple[dict[str, Any], int]] = {
    "ca": (
        {"samples_seen": 4, "batch_size": 2, "anchor_prompts": 2, "anchor_images": 2, "image_steps": 2},
        KV_PARAMETERS,
    ),
    "fade": (
        {"rollout_steps": 2, "batch_size": 1, "neighbours": "adjacent", "warmup_steps": 0, "sizes": None},
        ADAPTER_PARAMETERS,
    ),
    "fmn": ({"group": "xattn", "images": 2, "image_steps": 2}, ATTN2_PARAMETERS),
    "sdd": ({"rollout_steps": 2}, ATTN2_PARAMETERS),
    "salun": (
        {"group": "xattn", "batch_size": 1, "images": 2, "remain_images": 2, "image_steps": 2, "select_batches": 1},
        ATTN2_PARAMETERS,
    ),
    "spm": ({"rollout_steps": 2, "anchor_count": 2, "sizes": None}, ADAPTER_PARAMETERS),
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
        12 * TEXT_LAYER_PARAMETERS + 1536,  # and the last norm
    ),
    "hirm": ({}, TEXT_LAYER_PARAMETERS - 2 * 2 * 768),  # without its two norms
    "tea": (
        {"batch_size": 2, "prompts": 4},
        (49_408 + 77) * 768 + 12 * TEXT_LAYER_PARAMETERS,  # embeddings of tokens and places, and all but the last norm
    ),
    "compose": (
        {"edits": [{"method": "uce"}, {"method": "esd", "config": {"steps": 2, "rollout_steps": 2}}]},
        ATTN2_PARAMETERS,
    ),
    "ties": ({"edit": {"method": "esd", "config": {"steps": 2, "rollout_steps": 2}}}, ATTN2_PARAMETERS),
    "sgrace": (
        {"soft_prompts": 2, "words": [1, 2], "adversary_steps": 1, "anchors": 2, "denoising_steps": 4},
        12 * TEXT_LAYER_PARAMETERS + 1536,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", FINE_TUNED)
def test_two_steps_of_every_fine_tuner_at_full_size(method: str, base: Base) -> None:
    config, trained = FINE_TUNED[method]
    delta, metrics = two_steps(base, method, config)
    assert len(metrics.losses) == 2
    assert sum(value.numel() for name, value in delta.tensors.items() if not name.endswith(".alpha")) == trained
    assert peak_gib() < 16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "config", "more_than"),
    [
        ("esd", {"variant": "u", "rollout_steps": 2, "optimizer": "sgd"}, 810_000_000),
        ("fmn", {"images": 2, "image_steps": 2, "optimizer": "sgd"}, 859_000_000),
    ],
)
def test_two_steps_on_the_papers_weights_by_sgd(
    method: str, config: dict[str, Any], more_than: int, base: Base
) -> None:
    delta, metrics = two_steps(base, method, config)
    assert len(metrics.losses) == 2
    assert sum(value.numel() for value in delta.tensors.values()) > more_than
    assert peak_gib() < 16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "config"), [("negative-prompt", {}), ("sld", {"warm_up": 0}), ("safree", {}), ("adavd", {})]
)
def test_two_steps_of_an_image_under_every_hook_at_full_size(method: str, config: dict[str, Any], base: Base) -> None:
    delta, _ = two_steps(base, method, config)
    recipe = load_recipe("reference").model_copy(update={"steps": 2, "height": 64, "width": 64, "batch_size": 1})
    request = [ImageRequest("a painting by Van Gogh", 0)]
    plain = sample(base, recipe, request)
    base.swap(delta)
    try:
        kept_away = sample(base, recipe, request)
    finally:
        base.swap(None)
    assert plain.shape == kept_away.shape == (1, 64, 64, 3)
    assert (plain != kept_away).any()
    assert peak_gib() < 16


def two_steps(base: Base, method: str, config: dict[str, Any]) -> tuple[Delta, TrainingMetrics]:
    concepts = load_concept_set("genmu-2025")
    length = {"steps": 2} if "steps" in get_method(method).Config.model_fields and "samples_seen" not in config else {}
    job = make_job(base.spec.name, base.fingerprint, method, concepts, ["Van Gogh"], config={**length, **config})
    return run_job(job, base, concepts)


def peak_gib() -> float:
    """Of all that this process has run."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
