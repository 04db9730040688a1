"""What a campaign has to find before it can ask: adversarial prompts of targets for which its prompt set has none."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from efface.cluster.campaign.spec import Evaluation
from efface.cluster.tasks.prompt_search import PromptCheck, PromptSearch
from efface.concepts.concept import Concept, ConceptSet
from efface.concepts.prompts import PromptSet
from efface.eval.attack import attack_id, parse_attack_config, prompt_attack
from efface.eval.attack_target import attack_target
from efface.eval.attacking.found_prompts import slot
from efface.models.base import BaseSpec, text_encoder_id
from efface.models.files.model_files import NotCached

PROMPTS = 5
"""Prompts that are asked of each concept where the campaign does not limit them."""


@dataclass(frozen=True)
class PromptSearches:
    """The prompt set with slots where prompts will be found, and the tasks that find them."""

    prompts: PromptSet
    searches: tuple[PromptSearch, ...] = ()
    checks: tuple[PromptCheck, ...] = ()

    @cached_property
    def tasks(self) -> tuple[PromptSearch | PromptCheck, ...]:
        return (*self.searches, *self.checks)


def plan_prompt_searches(
    base: BaseSpec,
    prompts: PromptSet,
    concept_set: ConceptSet,
    targets: Sequence[Concept],
    evaluation: Evaluation,
    judged_by: tuple[str, ...],
) -> PromptSearches:
    """A search and a check for each target that the adversarial axis is asked of and the prompt set is silent on.

    judged_by: see `PromptCheck`. Raises UserError for an unknown attack, or a config that is none of it.
    """
    limit = evaluation.prompts_per_concept.get("adversarial")
    settings = evaluation.prompt_search
    prompt_attack(settings.attack)
    config = parse_attack_config(settings.attack, settings.config)
    what = settings.attack, config.model_dump(mode="json"), attack_id(settings.attack, config)
    missing = [t for t in targets if (row := prompts.rows.get(t.name)) and not row.adversarial]
    if limit == 0 or not missing:
        return PromptSearches(prompts)
    count = PROMPTS if limit is None else limit
    try:
        encoder = text_encoder_id(base, fetch=False)
    except NotCached:  # then the plan is provisional, and so is its base's id
        encoder = judged_by[0]
    searches = tuple(
        PromptSearch(attack_target(concept, concept_set, prompts), encoder, *what, settings.seed) for concept in missing
    )
    checks = tuple(PromptCheck(search, judged_by, count) for search in searches)
    rows = dict(prompts.rows)
    for check in checks:
        slots = tuple(slot(check.id, rank) for rank in range(1, count + 1))
        rows[check.concept] = replace(rows[check.concept], adversarial=slots)
    return PromptSearches(PromptSet(prompts.name, rows), searches, checks)
