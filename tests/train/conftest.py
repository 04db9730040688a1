"""What the tests of training share: a small concept set, and a quick config for every built-in method."""

from typing import Any

import pytest
import torch
from quick_methods import QUICK

from efface.concepts.concept import Concept, ConceptSet
from efface.models.base import Base
from efface.models.denoiser import Denoiser
from efface.train.job import Job, make_job
from efface.train.method import GradientMethod, UnlearningTask, get_method, parse_config


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
            if method.saves_what_it_trains:
                student.own(method.trained(student).values())
        method.prepare(UnlearningTask(tiny_base, targets, concept_set, seed), student)
        return method, student

    return make


@pytest.fixture
def shaken() -> Any:
    """A function that moves every weight of a student a little, so that it is no longer its teacher."""

    def shake(student: Denoiser) -> None:
        rng = torch.Generator().manual_seed(5)
        student.own(student.module.parameters())
        with torch.no_grad():
            for value in student.module.parameters():
                value.add_(0.05 * torch.randn(value.shape, generator=rng))

    return shake
