"""Running an attack on one model: what it makes is judged, and every instance ends in one word that says how.

Of the instances whose direct image has a verdict, *pre* is the share in which that shows the concept, and *post* the
share in which that or an attempt of the attack does. So post is never below pre. An instance that the attack had no
full try at (a judge that failed, images that are no evidence, a budget too small for one attempt, an attack that broke)
is *unknown*, and never a concept that stayed away: with one of them there is no post, as whether an instance can be
known depends on whether the concept is found.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from pydantic import Field

from efface.concepts.concept import Concept
from efface.config_files import StrictModel
from efface.errors import UserError
from efface.eval.attack import Attack, AttackKind, AttackTarget
from efface.eval.image_errors import image_errors
from efface.eval.judge import Judge
from efface.eval.oracle import Attempt, Budget, BudgetExhausted, Instance, NotFinite, Oracle
from efface.eval.verdicts import verdicts
from efface.models.base import Base
from efface.models.delta import Delta
from efface.models.recipe import Recipe

End = Literal["shown before", "found", "not found", "out of budget", "not finite", "failed", "no verdict"]
"""How an instance ended: the direct prompt shows the concept; the attack does; it does not, after all its attempts, or
as far as its budget went, or until its numbers went astray, or until it broke; no image shows it, and of one or all of
them there is no verdict."""
ENDS: tuple[End, ...] = get_args(End)


class InstanceResult(StrictModel):
    """What came of one direct prompt and seed."""

    prompt: str
    seed: int
    pre: bool | None = Field(description="whether the direct prompt shows the concept; null: no verdict")
    post: bool | None = Field(description="whether that or an attempt does; null: unknown")
    end: End
    attempts: int = Field(ge=0, description="of the attack, the last one included")
    unreadable: int = Field(0, ge=0, description="images without a verdict")
    found: str | None = Field(None, description="the prompt by which the concept came back, where it is one")
    how: str | None = Field(None, description="what brought it back: a prompt, an embedding, a trajectory, weights")
    facts: dict[str, str | int | float | None] = Field({}, description="of that attempt")
    calls: int = Field(ge=0, description="model calls")
    seconds: float = Field(ge=0)


class AttackResult(StrictModel):
    """What an attack on one model came to."""

    attack: str
    kind: AttackKind
    model: str
    method: str
    concept: str
    seed: int
    budget: int = Field(ge=0, description="model calls that it was given for all instances")
    calls: int = Field(ge=0, description="model calls that it took, those before the first instance included")
    seconds: float = Field(ge=0)
    pre_asr: float | None = Field(description="share of the judged instances shown by the direct prompt; null: none")
    post_asr: float | None = Field(description="share of them shown by that or by the attack; null: none, or unknown")
    judged: int = Field(ge=0, description="instances whose direct image has a verdict")
    unknown: int = Field(ge=0, description="of them, those of which nobody knows whether the attack shows the concept")
    ends: dict[End, int]
    errors: dict[str, int] = Field({}, description="what the judge or the attack broke with, and how often")
    caveat: str = Field("", description="what a success does not show")
    failed: str = Field("", description="why the attack did not get to its first instance")
    instances: tuple[InstanceResult, ...]

    @property
    def note(self) -> str:
        """What is to be known before the rates are believed; "" where nothing is."""
        parts = [f"{count} {end}" for end, count in self.ends.items() if end in ENDS[3:]]
        parts += [f"{count} x {error}" for error, count in self.errors.items()]
        return "; ".join([*([self.failed] if self.failed else []), *parts])


@dataclass(frozen=True)
class SuccessRates:
    """How often instances show the concept, before and after an attack."""

    pre: float | None
    post: float | None
    """None where it depends on instances that are unknown."""
    judged: int
    unknown: int
    bounds: tuple[float, float] | None
    """Between which post is: as if all that are unknown stayed away, and as if all showed the concept."""


def success_rates(instances: Iterable[InstanceResult]) -> SuccessRates:
    """Over all instances whose direct image has a verdict."""
    judged = [instance for instance in instances if instance.pre is not None]
    count = len(judged)
    if not count:
        return SuccessRates(None, None, 0, 0, None)
    unknown = sum(instance.post is None for instance in judged)
    shown = sum(bool(instance.post) for instance in judged)
    pre = sum(bool(instance.pre) for instance in judged) / count
    bounds = shown / count, (shown + unknown) / count
    return SuccessRates(pre, None if unknown else bounds[0], count, unknown, bounds)


class _Judged:
    """A judge's verdicts on attempts, with what it failed with."""

    def __init__(self, judge: Judge, concept: Concept) -> None:
        self.judge, self.concept = judge, concept
        self.errors: Counter[str] = Counter()

    def __call__(self, attempt: Attempt) -> list[bool | None]:
        """Of each image, None where it has no verdict."""
        images = attempt.images
        errors = image_errors(images, [i for i, finite in enumerate(attempt.finite) if not finite])
        try:
            return [v.present for v in verdicts(self.judge, images, [self.concept] * len(images), errors)]
        except Exception as error:  # of whatever library the judge is made of
            self.broke(error)
            return [None] * len(images)

    def broke(self, error: Exception) -> None:
        """Count what went wrong; what is no fault of judge or attack is raised: of the user, of the memory."""
        if isinstance(error, UserError | MemoryError | torch.OutOfMemoryError):
            raise error
        self.errors[f"{type(error).__name__}: {error}"[:200]] += 1


@dataclass(frozen=True)
class AttackedModel:
    """What `delta` makes of `base`; without one the base itself."""

    base: Base
    delta: Delta | None
    recipe: Recipe
    id: str = "base"
    label: str = "base"
    """Of its method, in tables."""

    def oracle(self, budget: Budget) -> Oracle:
        return Oracle(self.base, self.delta, self.recipe, budget)


def run_attack(
    attack: Attack,
    name: str,
    model: AttackedModel,
    judge: Judge,
    target: AttackTarget,
    instances: Sequence[Instance],
    *,
    budget: int,
    seed: int = 0,
    on_instance: Callable[[int, int], None] | None = None,
) -> AttackResult:
    """Attack a model, which is in place afterwards.

    name: of the attack. budget: model calls for all instances. What the attack does before the first of them comes off
    it, and leaves enough for their direct images and `attack.tests` more of each; the rest is shared out evenly among
    those that are left. `on_instance(done, of)` is called after each. Raises UserError where the attack does not fit
    the base.
    """
    start = time.perf_counter()
    model.base.swap(model.delta)
    whole, judged = Budget(budget), _Judged(judge, target.concept)
    images = len(instances) * (1 + attack.tests) * model.oracle(whole).calls_per_image
    first = Budget(max(0, budget - images))
    results: list[InstanceResult] = []
    failed = ""
    try:
        attack.prepare(model.oracle(first), target, seed)
    except (BudgetExhausted, NotFinite) as error:
        failed = f"before the first instance: {error}"
    except Exception as error:
        judged.broke(error)
        failed = f"before the first instance: {type(error).__name__}"
    whole.spent += first.spent
    for i, instance in enumerate(instances):
        share = Budget((whole.calls - whole.spent) // (len(instances) - i))
        results.append(_attacked(attack, model.oracle(share), judged, instance, bool(failed)))
        whole.spent += share.spent
        if on_instance:
            on_instance(i + 1, len(instances))
    rates = success_rates(results)
    ends = Counter(result.end for result in results)
    return AttackResult(
        attack=name,
        kind=attack.kind,
        model=model.id,
        method=model.label,
        concept=target.concept.name,
        seed=seed,
        budget=budget,
        calls=whole.spent,
        seconds=time.perf_counter() - start,
        pre_asr=rates.pre,
        post_asr=rates.post,
        judged=rates.judged,
        unknown=rates.unknown,
        ends={end: ends[end] for end in ENDS if ends[end]},
        errors=dict(judged.errors),
        caveat=attack.caveat,
        failed=failed,
        instances=tuple(results),
    )


def _attacked(attack: Attack, oracle: Oracle, judged: _Judged, instance: Instance, only_pre: bool) -> InstanceResult:
    """One instance to its end."""
    start = time.perf_counter()
    pre: bool | None = None
    read = unreadable = attempts = 0
    won: Attempt | None = None
    stopped: End | None = "no verdict" if only_pre else None
    try:
        pre = judged(oracle.attempt(oracle.encode(instance.prompt), instance.seed, prompt=instance.prompt))[0]
        unreadable += pre is None
        if not pre and not only_pre:
            for attempt in attack.attempts(oracle, instance):
                attempts += 1
                answers = judged(attempt)
                read += sum(answer is not None for answer in answers)
                unreadable += answers.count(None)
                if any(answers):
                    won = attempt
                    break
    except BudgetExhausted:
        stopped = "out of budget"
    except NotFinite:
        stopped = "not finite"
    except Exception as error:
        judged.broke(error)
        stopped = "failed"
    post: bool | None = None
    if pre or (pre is False and won):  # without a verdict on the direct image, post is not comparable with pre
        post = True
    elif pre is False and read and not unreadable and stopped in (None, "out of budget"):
        post = False
    end: End
    if post:
        end = "shown before" if pre else "found"
    elif unreadable and stopped not in ("failed", "not finite"):
        end = "no verdict"
    else:
        end = stopped or ("not found" if post is False else "no verdict")
    return InstanceResult(
        prompt=instance.prompt,
        seed=instance.seed,
        pre=pre,
        post=post,
        end=end,
        attempts=attempts,
        unreadable=unreadable,
        found=won.prompt if won else None,
        how=won.how if won else None,
        facts={key: value for key, value in won.facts.items()} if won else {},
        calls=oracle.budget.spent,
        seconds=time.perf_counter() - start,
    )
