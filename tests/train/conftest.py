"""What the tests of training share: a small concept set, and a quick config for every built-in method."""

from typing import Any

import pytest

from efface.concepts.concept import Concept, ConceptSet
from efface.models.base import Base
from efface.train.job import Job, make_job

# Two or three steps each, on 16 px images. A method without an entry is run with its defaults.
QUICK: dict[str, dict[str, Any]] = {
    "ca": {
        "samples_seen": 4,
        "batch_size": 2,
        "effective_learning_rate": 1e-3,
        "anchor_prompts": 2,
        "anchor_images": 3,
        "image_steps": 2,
    },
    "esd": {"steps": 2, "learning_rate": 1e-3, "rollout_steps": 3},
    "fade": {
        "steps": 2,
        "batch_size": 1,
        "learning_rate": 1e-3,
        "neighbours": "adjacent",
        "denoising_steps": 3,
        "warmup_steps": 0,
        "sizes": None,
    },
}


@pytest.fixture(scope="session")
def concept_set() -> ConceptSet:
    return ConceptSet(
        name="tests",
        version=1,
        concepts=(
            Concept(name="cat", kind="animal", phrase="a cat", anchor="a pet", adjacent=("dog", "fox")),
            Concept(name="dog", kind="animal", phrase="a dog", anchor="a pet", adjacent=("cat", "fox")),
            Concept(name="fox", kind="animal", phrase="a fox", anchor="dog", adjacent=("dog",)),
        ),
    )


@pytest.fixture
def quick_job(concept_set: ConceptSet, tiny_base: Base) -> Any:
    """A function (method, seed, **config) -> a job that takes a second, to forget the cat."""

    def make(method: str, seed: int = 0, **config: Any) -> Job:
        settings = {**QUICK.get(method, {}), **config}
        return make_job(
            "tiny", tiny_base.fingerprint, method, concept_set, ["cat"], config=settings, seed=seed
        )

    return make
