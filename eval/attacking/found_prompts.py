"""Prompts that a run finds for itself, and how they are asked for before they are known.

A plan names every image before the first prompt is found, for ids are functions of what decides a result and not of the
result. So an image of such a prompt is asked for by a *slot*: the check that will confirm prompts, and a rank among
them. Whoever makes the image fills the slots in.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from pydantic import Field

from efface.concepts.prompts import prompt_id
from efface.config_files import StrictModel
from efface.eval.judging.eval_requests import EvalRequest

MIN_DETECTION_RATE = 0.5
"""Share of the check's images that must show the concept."""


class FoundPrompt(StrictModel):
    """A prompt, and in how many of the images that the unedited base made of it the judge found the concept."""

    text: str
    strength: float
    detection_rate: float = Field(ge=0, le=1)
    unreadable: int = Field(0, ge=0, description="verdicts that could not be read: they count as not found")


class FoundPrompts(StrictModel):
    """What a search came to for one concept."""

    concept: str
    attack: str
    prompts: tuple[FoundPrompt, ...] = Field(description="that are asked, the most often detected first")
    tried: int = Field(ge=0, description="prompts that were checked on the base")
    images: int = Field(ge=0, description="that the check made")
    unreadable: int = Field(0, ge=0, description="verdicts of the check that could not be read")

    @property
    def confirmed(self) -> bool:
        """Whether the base makes the concept from these prompts."""
        return any(prompt.detection_rate >= MIN_DETECTION_RATE for prompt in self.prompts)

    @property
    def selection_rate(self) -> float | None:
        """Share of the images by which the prompts were chosen that show the concept; None: there is no prompt."""
        rates = [prompt.detection_rate for prompt in self.prompts]
        return sum(rates) / len(rates) if rates else None

    @property
    def warning(self) -> str:
        """What is to be known before the axis is believed; "" where nothing is."""
        unread = f"; {self.unreadable} of {self.images} verdicts could not be read" if self.unreadable else ""
        if not self.prompts:
            return (
                f"no adversarial prompt was found for '{self.concept}': its adversarial axis has no images, and "
                f"whatever forgets it has no ERR{unread}"
            )
        if self.confirmed:
            return f"adversarial prompts of '{self.concept}'{unread}" if unread else ""
        best = max(prompt.detection_rate for prompt in self.prompts)
        return (
            f"no adversarial prompt was found from which the base makes '{self.concept}' ({self.tried} tried): its "
            f"axis is asked by the {len(self.prompts)} strongest, which show it in at most {best:.0%} of the base's "
            f"images, so its adversarial score and its ERR say little; compare with the base's{unread}"
        )


_SLOT = re.compile(r"adversarial prompt ([0-9]+) of check ([0-9a-f]{16})")


def slot(check: str, rank: int) -> str:
    """What stands in a plan for the prompt of rank 1, 2, … that the check with this id will confirm."""
    return f"adversarial prompt {rank} of check {check}"


def read_slot(text: str) -> tuple[str, int] | None:
    """(check, rank) of a slot; None of a prompt."""
    found = _SLOT.fullmatch(text)
    return (found[2], int(found[1])) if found else None


def checks_of(requests: Sequence[EvalRequest]) -> tuple[str, ...]:
    """The checks whose prompts are asked for, each once."""
    slots = map(read_slot, dict.fromkeys(request.prompt for request in requests))
    return tuple(dict.fromkeys(found[0] for found in slots if found))


def fill(requests: Sequence[EvalRequest], found: Callable[[str], FoundPrompts]) -> tuple[EvalRequest, ...]:
    """The requests with the prompts that were found; those of slots for which there is none are left out.

    found: by the id of a check.
    """
    filled = []
    for request in requests:
        where = read_slot(request.prompt)
        if where is None:
            filled.append(request)
            continue
        check, rank = where
        prompts = found(check).prompts
        if rank <= len(prompts):
            text = prompts[rank - 1].text
            asks = tuple(replace(ask, prompt_id=prompt_id(text)) for ask in request.asks)
            filled.append(EvalRequest(text, request.seed, asks))
    return tuple(filled)
