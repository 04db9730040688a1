"""Attacking: one attack on one model, for one concept that it was made to forget; and its prompts on other models."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from efface.cluster.tasks.model import Model
from efface.cluster.tasks.task import DamagedInput, RateUse, Task
from efface.config_files import read_config
from efface.eval.attacking.attack_transfer import Transferred, Transfers
from efface.files import content_id, slug, write_json

if TYPE_CHECKING:
    from efface.cluster.campaign.plan import Plan
    from efface.cluster.workers.worker import Worker
    from efface.eval.attack_target import AttackTarget
    from efface.eval.attacking.attack_result import AttackResult
    from efface.models.delta import Delta
    from efface.models.recipe import Recipe

VERSION = 3
"""Of the running of attacks as a whole."""

ATTACK, TRANSFER = "attack.json", "transfer.json"
"""The outputs: what the attack came to; what the prompts found against other models do here."""


@dataclass(frozen=True)
class AttackTask(Task):
    """One attack on one model. Its record says what it cost, in model calls and seconds."""

    kind = "attack"
    teaches_rates = False  # it ends as soon as everything is found

    model: Model
    target: AttackTarget
    attack: str
    config: dict[str, Any] = field(hash=False)
    """The attack's config as JSON, every field of it."""
    attack_id: str
    """Of the attack with this config, see `eval.attack`."""
    instances: tuple[tuple[str, int], ...]
    """(direct prompt, image seed) of each."""
    budget: int
    """Model calls, for all instances."""
    seed: int
    judged_by: tuple[str, ...]
    """The ids of the recipe, and of the calibration of the judge of the headline, in this order."""

    @cached_property
    def id(self) -> str:
        return content_id([*self.search, self.model.id, self.model.label])

    @cached_property
    def search(self) -> tuple[Any, ...]:
        """What is tried, whatever the model is."""
        searched = (self.attack_id, self.target.id, self.instances, self.budget, self.seed)
        return (VERSION, *searched, self.judged_by)

    @cached_property
    def requires(self) -> tuple[str, ...]:
        return (self.model.folder, self.judged_by[-1])

    def run(self, worker: Worker) -> None:
        worker.set_resident(self.model)
        result = self.attacked(worker, worker.base.applied, self.model.id)
        path = worker.folder.output(self, ATTACK)
        write_json(path, result.model_dump(mode="json"))
        worker.finish(self, [path], note=result.note, calls=result.calls, ends=result.ends)

    def attacked(self, worker: Worker, delta: Delta | None, id: str) -> AttackResult:
        """What comes of it on the model that `delta` makes of the base, which has this id, and is in place then."""
        from efface.eval.attack import ATTACKS, parse_attack_config
        from efface.eval.attacking.attack_run import AttackedModel, run_attack
        from efface.eval.oracle import Instance

        base, judge = worker.base, worker.judges()[0]
        judge.check([self.target.concept])
        with worker.counting(self, len(self.instances), "instance") as count:

            def on_instance(done: int, of: int) -> None:
                count(1)
                worker.on_step(self, done, of, 0.0)

            return run_attack(
                ATTACKS.get(self.attack)(base, parse_attack_config(self.attack, self.config)),
                self.attack,
                AttackedModel(base, delta, worker.recipe, id, self.label),
                judge,
                self.target,
                [Instance(prompt, seed) for prompt, seed in self.instances],
                budget=self.budget,
                seed=self.seed,
                on_instance=on_instance,
            )

    @property
    def concept(self) -> str:
        return self.target.concept.name

    @property
    def provides(self) -> str:
        return self.id

    @property
    def stage(self) -> str:
        return f"attack {self.attack}"

    def describe(self) -> str:
        return f"{self.attack} on {self.model.describe()} for {self.concept}"

    def rate_uses(self, plan: Plan) -> tuple[RateUse, ...]:
        """At most: as many images as the budget would make."""
        return (RateUse("seconds_per_image", plan.recipe.name, self.budget / calls_per_image(plan.recipe)),)

    @property
    def stem(self) -> str:
        return f"{self.attack}-{slug(self.concept)}-{self.id}"


@dataclass(frozen=True)
class TransferTask(Task):
    """The prompts that attacks found against models of a concept, tried on one model: a column of the matrix."""

    kind = "transfer"
    teaches_rates = False

    model: Model
    attacks: tuple[AttackTask, ...]

    @cached_property
    def id(self) -> str:
        return content_id([VERSION, self.model.id, self.model.label, [attack.id for attack in self.attacks]])

    @cached_property
    def requires(self) -> tuple[str, ...]:
        return (self.model.folder, *(attack.id for attack in self.attacks))

    def run(self, worker: Worker) -> None:
        rows = tuple(self._tried(worker, attack) for attack in self.attacks)
        path = worker.folder.output(self, TRANSFER)
        write_json(path, Transfers(rows=rows).model_dump(mode="json"))
        worker.finish(self, [path], images=sum(row.prompts for row in rows))

    def _tried(self, worker: Worker, attack: AttackTask) -> Transferred:
        from efface.eval.judging.image_errors import image_errors
        from efface.eval.judging.verdicts import verdicts
        from efface.models.sampling.sampler import ImageRequest, sample

        found = [
            ImageRequest(instance.found, instance.seed)
            for instance in read_attack(worker, attack).instances
            if instance.found and instance.how == "prompt"
        ]
        worker.set_resident(self.model)
        not_finite: set[int] = set()
        images = sample(worker.base, worker.recipe, found, on_not_finite=not_finite.add)
        answers = verdicts(
            worker.judges()[0], images, [attack.target.concept] * len(found), image_errors(images, not_finite)
        )
        present = [answer.present for answer in answers if answer.present is not None]
        return Transferred(
            attack=attack.attack,
            source=attack.label,
            method=self.label,
            concept=attack.concept,
            prompts=len(found),
            judged=len(present),
            shown=sum(present),
        )

    def describe(self) -> str:
        return f"prompts of attacks on {self.model.describe()}"

    def rate_uses(self, plan: Plan) -> tuple[RateUse, ...]:
        """At most: as if every instance had been found."""
        images = sum(len(attack.instances) for attack in self.attacks)
        return (RateUse("seconds_per_image", plan.recipe.name, images),)


def read_attack(worker: Worker, attack: AttackTask) -> AttackResult:
    """What an attack came to. Raises DamagedInput."""
    from efface.eval.attacking.attack_result import AttackResult

    path = worker.folder.output(attack, ATTACK)
    if not worker.folder.is_intact(attack):
        raise DamagedInput(path, worker.folder.record_file(attack))
    return read_config(AttackResult, path)


def calls_per_image(recipe: Recipe) -> int:
    """Model calls of an image: a step is two with guidance."""
    return recipe.steps * (2 if recipe.guidance_scale > 1 else 1)
