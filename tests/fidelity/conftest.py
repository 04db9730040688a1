"""What the comparisons with the papers share: the tests of training's small concept set, jobs and students,
and the model on which authors' code was run."""

from tests.fidelity.authors_code import authors_concepts, recorded_base, recorded_model
from tests.train.conftest import alphas_cumprod, concept_set, prepare, quick_job, shaken

__all__ = [
    "alphas_cumprod",
    "authors_concepts",
    "concept_set",
    "prepare",
    "quick_job",
    "recorded_base",
    "recorded_model",
    "shaken",
]
