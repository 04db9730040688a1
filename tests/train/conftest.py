"""What the tests of training share: a small concept set, and a quick config for every built-in method."""

from typing import Any

import pytest
import torch

from efface.concepts.concept import Concept, ConceptSet
from efface.models.base import Base
from efface.models.denoiser import Denoiser
from efface.train.job import Job, make_job
from efface.train.method import GradientMethod, UnlearningTask, get_method, parse_config

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
    "sdd": {"steps": 2, "learning_rate": 1e-2, "rollout_steps": 3, "warmup_steps": 0, "ema_decay": 0.5},
    "salun": {
        "steps": 2,
        "learning_rate": 1e-3,
        "batch_size": 2,
        "select_batches": 1,
        "images": 2,
        "remain_images": 2,
        "image_steps": 2,
    },
    "spm": {
        "steps": 2,
        "learning_rate": 0.1,
        "anchor_weight": 10,
        "rollout_steps": 3,
        "warmup_steps": 0,
        "anchor_count": 2,
        "schedule_cycles": 1,
        "sizes": None,
    },
    "eap": {"steps": 2, "learning_rate": 1e-3, "rollout_steps": 3, "vocabulary": ["a bus", "a house", "a tree"]},
    "age": {"steps": 2, "learning_rate": 1e-3, "rollout_steps": 3, "vocabulary": ["a bus", "a house", "a tree"]},
    "receler": {
        "steps": 2,
        "learning_rate": 1e-2,
        "rollout_steps": 3,
        "rank": 4,
        "adversary_steps": 2,
        "adversary_tokens": 3,
    },
    "fmn": {"steps": 2, "learning_rate": 1e-3, "images": 2, "image_steps": 2},
    "mace": {
        "steps": 2,
        "learning_rate": 1e-2,
        "captions": 2,
        "images": 2,
        "image_steps": 2,
        "masks": "attention",
        "general_captions": ["a harbour", "two horses"],
    },
    "hirm": {"steps": 2, "learning_rate": 1e-3},
    "tea": {"steps": 2, "learning_rate": 1e-3, "batch_size": 2, "prompts": 4},
    "sgrace": {
        "steps": 3,
        "round_steps": 2,
        "learning_rate": 1e-3,
        "related": ["a cat", "kitty"],
        "unrelated": ["a house", "a boat", "a tree"],
        "soft_prompts": 2,
        "words": [1, 2],
        "adversary_steps": 1,
        "anchors": 2,
        "denoising_steps": 4,
    },
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


@pytest.fixture(scope="session")
def alphas_cumprod() -> torch.Tensor:
    """Stable Diffusion's scaled-linear noise schedule, written out: (1000,)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return torch.cumprod(1 - betas, dim=0)


@pytest.fixture
def quick_job(concept_set: ConceptSet, tiny_base: Base) -> Any:
    """A function (method, seed, **config) -> a job that takes a second, to forget the cat."""

    def make(method: str, seed: int = 0, **config: Any) -> Job:
        settings = {**QUICK.get(method, {}), **config}
        return make_job("tiny", tiny_base.fingerprint, method, concept_set, ["cat"], config=settings, seed=seed)

    return make


@pytest.fixture
def prepare(concept_set: ConceptSet, tiny_base: Base) -> Any:
    """A function (method, *concepts, seed=0, **config) -> the method and its student, as before the first step."""

    def make(name: str, *concepts: str, seed: int = 0, **config: Any) -> tuple[Any, Denoiser]:
        method: Any = get_method(name)(parse_config(name, {**QUICK.get(name, {}), **config}))
        student = tiny_base.network(getattr(method, "network", "unet")).copy()
        targets = tuple(concept_set.find(concept) for concept in concepts or ("cat",))
        if isinstance(method, GradientMethod):
            method.add_adapters(student, seed)
        method.prepare(UnlearningTask(tiny_base, targets, concept_set, seed), student)
        return method, student

    return make


@pytest.fixture
def shaken() -> Any:
    """A function that moves every weight of a student a little, so that it is no longer its teacher."""

    def shake(student: Denoiser) -> None:
        rng = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for value in student.module.parameters():
                value.add_(0.05 * torch.randn(value.shape, generator=rng))

    return shake
