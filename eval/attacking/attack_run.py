"""Running an attack on one model: what it makes is judged, and every instance ends in one word that says how.

An adaptive attack is tried where the direct prompt does not show the concept, until it does. The prompts of a static
attack are all tried, on every model. `attack_result.py` says how that is counted.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from efface.concepts.concept import Concept
from efface.errors import UserError
from efface.eval.attack import Attack, AttackTarget
from efface.eval.attacking.attack_result import (
    ENDS,
    MOST_TRIED,
    AttackResult,
    End,
    InstanceResult,
    Tried,
    prompt_rate,
    recovery_curve,
    success_rates,
)
from efface.eval.attacking.encoder_budget import counted_encoder, encoder_budget
from efface.eval.judge import Judge
from efface.eval.judging.image_errors import image_errors
from efface.eval.judging.verdicts import verdicts
from efface.eval.oracle import Attempt, Budget, BudgetExhausted, Instance, NotFinite, Oracle
from efface.models.base import Base
from efface.models.delta import Delta
from efface.models.recipe import Recipe


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
    encoder = encoder_budget(budget)
    images = len(instances) * (1 + attack.tests) * model.oracle(whole).calls_per_image
    first = Budget(max(0, budget - images))
    results: list[InstanceResult] = []
    failed = ""
    with counted_encoder(model.base.text_encoder, encoder):
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
        encoder_passes=encoder.spent,
        seconds=time.perf_counter() - start,
        pre_asr=rates.pre,
        post_asr=rates.post,
        judged=rates.judged,
        unknown=rates.unknown,
        prompt_rate=prompt_rate(results) if attack.kind == "static" else None,
        recovery=recovery_curve(results),
        ends={end: ends[end] for end in ENDS if ends[end]},
        errors=dict(judged.errors),
        caveat=attack.caveat,
        remark=attack.remark,
        failed=failed,
        instances=tuple(results),
    )


def _attacked(attack: Attack, oracle: Oracle, judged: _Judged, instance: Instance, only_pre: bool) -> InstanceResult:
    """One instance to its end."""
    start = time.perf_counter()
    pre: bool | None = None
    read = unreadable = attempts = 0
    won: Attempt | None = None
    tried: list[Tried] = []
    stopped: End | None = "no verdict" if only_pre else None
    try:
        pre = judged(oracle.attempt(oracle.encode(instance.prompt), instance.seed, prompt=instance.prompt))[0]
        unreadable += pre is None
        if (attack.kind == "static" or not pre) and not only_pre:
            for attempt in attack.attempts(oracle, instance):
                attempts += 1
                answers = judged(attempt)
                read += sum(answer is not None for answer in answers)
                unreadable += answers.count(None)
                tried.append(_tried(attempt, answers))
                if any(answers):
                    won = won or attempt
                    if attack.kind == "adaptive":
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
        tried=tuple(tried[:MOST_TRIED]),
        attempts_judged=sum(one.present is not None for one in tried),
        attempts_shown=sum(bool(one.present) for one in tried),
        cut_short=stopped == "out of budget",
        found=won.prompt if won else None,
        how=won.how if won else None,
        facts={key: value for key, value in won.facts.items()} if won else {},
        calls=oracle.budget.spent,
        seconds=time.perf_counter() - start,
    )


def _tried(attempt: Attempt, answers: list[bool | None]) -> Tried:
    """An attempt shows the concept where one of its images does, and does not where all have a verdict."""
    present = True if any(answers) else None if None in answers else False
    return Tried(prompt=attempt.prompt, how=attempt.how, facts=dict(attempt.facts), present=present)
