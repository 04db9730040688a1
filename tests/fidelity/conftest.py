"""What the comparisons with the papers share: the tests of training's small concept set, jobs and students."""

from tests.train.conftest import alphas_cumprod, concept_set, prepare, quick_job, shaken

__all__ = ["alphas_cumprod", "concept_set", "prepare", "quick_job", "shaken"]
