"""What an attack on one model came to: every instance with what was tried on it, and the rates over all instances.

Of the instances whose direct image has a verdict, *pre* is the share in which that shows the concept, and *post* the
share in which that or an attempt of the attack does. So post is never below pre. An instance that the attack had no
full try at (a judge that failed, images that are no evidence, a budget too small for one attempt, an attack that broke)
is *unknown*, and never a concept that stayed away: with one of them there is no post, as whether an instance can be
known depends on whether the concept is found.

The prompts of a static attack are the same for every model, and all of them are tried on every model, so that they
have a rate of their own: of all judged attempts, the share that shows the concept. On the unedited base it says what
the prompts are worth.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import Field

from efface.config_files import StrictModel
from efface.eval.attack import AttackKind

End = Literal["shown before", "found", "not found", "out of budget", "not finite", "failed", "no verdict"]
"""How an instance ended: the direct prompt shows the concept; the attack does; it does not, after all its attempts, or
as far as its budget went, or until its numbers went astray, or until it broke; no image shows it, and of one or all of
them there is no verdict."""
ENDS: tuple[End, ...] = get_args(End)

MOST_TRIED = 100
"""Attempts of an instance that are kept one by one."""

How = Literal["prompt", "embedding", "trajectory", "weights"]


class Tried(StrictModel):
    """One attempt, and its verdict."""

    prompt: str | None = Field(None, description="where it is one")
    how: How = Field(description="what was tried: a prompt, an embedding, a trajectory, weights")
    facts: dict[str, Any] = Field({}, description="how it was made")
    present: bool | None = Field(description="whether it shows the concept; null: no verdict")


class InstanceResult(StrictModel):
    """What came of one direct prompt and seed."""

    prompt: str
    seed: int
    pre: bool | None = Field(description="whether the direct prompt shows the concept; null: no verdict")
    post: bool | None = Field(description="whether that or an attempt does; null: unknown")
    end: End
    attempts: int = Field(ge=0, description="of the attack, the last one included")
    unreadable: int = Field(0, ge=0, description="images without a verdict")
    tried: tuple[Tried, ...] = Field((), description=f"the attempts one by one, the first {MOST_TRIED}")
    attempts_judged: int = Field(0, ge=0, description="attempts with a verdict")
    attempts_shown: int = Field(0, ge=0, description="attempts that show the concept")
    cut_short: bool = Field(False, description="whether attempts are missing for want of model calls")
    found: str | None = Field(None, description="the prompt by which the concept came back, where it is one")
    how: str | None = Field(None, description="what brought it back: a prompt, an embedding, a trajectory, weights")
    facts: dict[str, str | int | float | None] = Field({}, description="of that attempt")
    calls: int = Field(ge=0, description="model calls")
    seconds: float = Field(ge=0)


class Recovered(StrictModel):
    """A point of a recovery curve."""

    steps: int = Field(ge=0, description="of the attack; 0: the direct prompt")
    share: float = Field(description="of the judged instances, those that showed the concept until then")


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
    encoder_passes: int = Field(0, ge=0, description="samples through the text encoder before the first instance")
    seconds: float = Field(ge=0)
    pre_asr: float | None = Field(description="share of the judged instances shown by the direct prompt; null: none")
    post_asr: float | None = Field(description="share of them shown by that or by the attack; null: none, or unknown")
    judged: int = Field(ge=0, description="instances whose direct image has a verdict")
    unknown: int = Field(ge=0, description="of them, those of which nobody knows whether the attack shows the concept")
    prompt_rate: float | None = Field(
        None, description="of the judged attempts of a static attack, the share that shows the concept; null: none"
    )
    recovery: tuple[Recovered, ...] = Field(
        (), description="share of instances that are back after so many steps, of an attack that trains or searches"
    )
    ends: dict[End, int]
    errors: dict[str, int] = Field({}, description="what the judge or the attack broke with, and how often")
    caveat: str = Field("", description="what a success does not show")
    remark: str = Field("", description="what is to be known of what was tried")
    failed: str = Field("", description="why the attack did not get to its first instance")
    instances: tuple[InstanceResult, ...]

    @property
    def note(self) -> str:
        """What is to be known before the rates are believed; "" where nothing is."""
        parts = [f"{count} {end}" for end, count in self.ends.items() if end in ENDS[3:]]
        cut_short = sum(one.cut_short and one.end != "out of budget" for one in self.instances)
        parts += [f"{cut_short} without all attempts, out of budget"] if cut_short else []
        parts += [f"{count} x {error}" for error, count in self.errors.items()]
        return "; ".join([*filter(None, (self.failed, self.remark)), *parts])


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


def prompt_rate(instances: Iterable[InstanceResult]) -> float | None:
    """Of all judged attempts, the share that shows the concept: the rate of a static attack's prompts. None: none."""
    counts = [(instance.attempts_shown, instance.attempts_judged) for instance in instances]
    judged = sum(count for _, count in counts)
    return sum(shown for shown, _ in counts) / judged if judged else None


def recovery_curve(instances: Sequence[InstanceResult]) -> tuple[Recovered, ...]:
    """The share of judged instances that showed the concept, cumulative over the `steps` of what was tried.

    It begins with Pre-ASR at step 0 and ends at Post-ASR. Empty for an attack whose attempts name no steps, and with an
    unknown instance.
    """
    judged = [instance for instance in instances if instance.pre is not None]
    tests = [[(int(t.facts["steps"]), t.present) for t in one.tried if "steps" in t.facts] for one in judged]
    steps = sorted({step for each in tests for step, _ in each})
    if not steps or any(instance.post is None for instance in judged):
        return ()

    def back(until: int) -> int:
        return sum(
            bool(one.pre) or any(present and step <= until for step, present in each)
            for one, each in zip(judged, tests, strict=True)
        )

    return tuple(Recovered(steps=step, share=back(step) / len(judged)) for step in (0, *steps))
