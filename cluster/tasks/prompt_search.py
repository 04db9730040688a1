"""Adversarial prompts that a campaign finds for itself: a search on the base's text encoder, then a check by the judge.

One search for each text encoder and concept, and one check of what it found for each base, recipe and judge. What they
came to is kept for later campaigns (`cluster/storage/prompt_cache.py`), and asked for by slots
(`efface/eval/attacking/found_prompts.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import Field

from efface.cluster.tasks.task import DamagedInput, Priority, RateUse, Task
from efface.config_files import StrictModel, read_config
from efface.files import content_id, slug, write_json

if TYPE_CHECKING:
    from efface.cluster.campaign.plan import Plan
    from efface.cluster.workers.worker import Worker
    from efface.eval.attack_target import AttackTarget

VERSION = 1
"""Of the search and the check as a whole: a higher one finds anew what is cached."""

CANDIDATES, FOUND = "candidates.json", "prompts.json"
"""The outputs: what the search found; what is asked of it."""


class Candidate(StrictModel):
    """A prompt that an attack found, and how strong it thinks it."""

    text: str
    strength: float


class Candidates(StrictModel):
    """What a search found for one concept, the strongest first."""

    concept: str
    attack: str
    prompts: tuple[Candidate, ...]
    reason: str = Field("", description="why there are none, where the attack says so")


@dataclass(frozen=True)
class PromptSearch(Task):
    """Of one concept, on the text encoder alone; without it nobody knows what to ask on the adversarial axis."""

    kind = "prompt-search"
    unit = "concept"
    priority = Priority.FIRST
    model = None

    target: AttackTarget
    text_encoder_id: str
    attack: str
    config: dict[str, Any] = field(hash=False)
    """The attack's config as JSON, every field of it."""
    attack_id: str
    """Of the attack with this config, see `eval.attack`."""
    seed: int = 0

    @cached_property
    def id(self) -> str:
        return content_id([VERSION, self.target.id, self.text_encoder_id, self.attack_id, self.seed])

    def run(self, worker: Worker) -> None:
        from efface.errors import UserError
        from efface.eval.attack import parse_attack_config, prompt_attack
        from efface.eval.attacking.adversarial_prompts import MOST

        worker.set_resident(None)
        attack = prompt_attack(self.attack)(worker.base, parse_attack_config(self.attack, self.config))
        reason = ""
        try:
            found = attack.strongest(self.target, self.seed, MOST)
        except UserError as error:  # it can make no prompt at all, which the check says
            found, reason = [], str(error)
        prompts = tuple(Candidate(text=prompt.text, strength=prompt.strength) for prompt in found)
        path = worker.folder.output(self, CANDIDATES)
        candidates = Candidates(concept=self.concept, attack=self.attack, prompts=prompts, reason=reason)
        write_json(path, candidates.model_dump(mode="json"))
        worker.finish(self, [path], candidates=len(prompts))

    @property
    def concept(self) -> str:
        return self.target.concept.name

    @property
    def provides(self) -> str:
        return self.id

    def describe(self) -> str:
        return f"searching adversarial prompts of {self.concept}"

    def rate_uses(self, plan: Plan) -> tuple[RateUse, ...]:
        return (RateUse("seconds_per_task", f"{self.kind} {self.attack}", 1),)

    @property
    def folder(self) -> str:
        return "prompts"

    @property
    def stem(self) -> str:
        return f"{slug(self.concept)}-{self.id}"


@dataclass(frozen=True)
class PromptCheck(Task):
    """Of one search: what is asked, which is what the base makes the concept from, by the judge of the headline."""

    kind = "prompt-check"
    unit = "concept"
    priority = Priority.FIRST
    teaches_rates = False  # it ends as soon as enough prompts are confirmed
    model = None

    search: PromptSearch
    judged_by: tuple[str, ...]
    """The ids of the base, of the recipe, and of the judge's calibration, in this order."""
    prompts: int
    """How many are asked, at most."""

    @cached_property
    def id(self) -> str:
        from efface.eval.attacking.adversarial_prompts import CHECK_SEEDS

        return content_id([self.search.id, self.judged_by, self.prompts, CHECK_SEEDS])

    @cached_property
    def requires(self) -> tuple[str, ...]:
        return (self.search.id, self.judged_by[-1])

    def run(self, worker: Worker) -> None:
        from efface.eval.attack import AdversarialPrompt
        from efface.eval.attacking import adversarial_prompts as prompts

        worker.set_resident(None)
        searched = worker.folder.output(self.search, CANDIDATES)
        if not worker.folder.is_intact(self.search):
            raise DamagedInput(searched, worker.folder.record_file(self.search))
        candidates = read_config(Candidates, searched)
        judge = worker.judges()[0]
        judge.check([self.search.target.concept])
        with worker.counting(self, len(candidates.prompts) * len(prompts.CHECK_SEEDS)) as on_batch:
            tried = prompts.check_candidates(
                [AdversarialPrompt(candidate.text, candidate.strength) for candidate in candidates.prompts],
                self.search.target.concept,
                prompts.PromptChecker(worker.base, worker.recipe, judge, on_batch),
                self.prompts,
            )
        found = prompts.found_prompts(self.search.concept, candidates.attack, tried, self.prompts)
        path = worker.folder.output(self, FOUND)
        write_json(path, found.model_dump(mode="json"))
        note = "; ".join(filter(None, (found.warning, candidates.reason)))
        worker.finish(self, [path], note=note, confirmed=found.confirmed, images=found.images)

    @property
    def concept(self) -> str:
        return self.search.concept

    @property
    def provides(self) -> str:
        return self.id

    def describe(self) -> str:
        return f"checking adversarial prompts of {self.concept}"

    def rate_uses(self, plan: Plan) -> tuple[RateUse, ...]:
        """At most: it makes fewer images where prompts are confirmed early."""
        from efface.eval.attacking.adversarial_prompts import CHECK_SEEDS, MOST

        return (RateUse("seconds_per_image", plan.recipe.name, MOST * len(CHECK_SEEDS)),)

    @property
    def folder(self) -> str:
        return self.search.folder

    @property
    def stem(self) -> str:
        return f"{self.search.stem}-{self.id}"
