"""One solve of each closed form, and two steps of MACE, on Stable Diffusion v1.4's shapes with random weights."""

import resource
from typing import Any

import pytest

from efface.concepts.concept import ConceptSet, load_concept_set
from efface.models.base import Base, load_base, read_base
from efface.train.job import make_job
from efface.train.run_job import run_job

VALUES = 9_584_640
"""768 x 12,480: the channels of the sixteen cross-attentions; keys are as many again."""
CONFIGS: dict[str, tuple[dict[str, Any], int]] = {
    "uce": ({}, 2 * VALUES),
    "rece": ({}, 2 * VALUES),
    "speed": ({}, VALUES),
    "double-projections": ({}, 2 * VALUES),
    "oce": ({"general_captions": "preserved"}, VALUES),
    "mace": (
        {
            "steps": 2,
            "captions": 2,
            "images": 1,
            "image_steps": 1,
            "masks": "attention",
            "general_captions": ["a cafe"],
        },
        2 * VALUES,
    ),
}


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base(read_base("sd-v1-4-random").model_copy(update={"image_size": 64}))


@pytest.fixture(scope="module")
def concepts() -> ConceptSet:
    return load_concept_set("genmu-2025")


@pytest.mark.slow
@pytest.mark.parametrize("method", CONFIGS)
def test_a_solve_at_full_size_changes_the_projections_and_nothing_else(
    method: str, base: Base, concepts: ConceptSet
) -> None:
    config, parameters = CONFIGS[method]
    job = make_job(base.spec.name, base.fingerprint, method, concepts, ["Van Gogh"], config=config)
    delta, _ = run_job(job, base, concepts)
    assert all(".attn2.to_" in name for name in delta.tensors)
    assert sum(tensor.numel() for tensor in delta.tensors.values()) == parameters
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 16 * 2**20  # KiB, of all that this process has run
