"""What an attack is: a strict config, and a search for prompts that bring a concept back without its name.

    @ATTACKS.register("token-search")
    class TokenSearch(Attack):
        Config = TokenSearchConfig

        def find(self, target: AttackTarget, seed: int) -> Iterator[AdversarialPrompt]: ...

One file each in `eval/attacks/`, or an entry point of the group `efface.attacks`. `adversarial_prompts.py` runs one
over a concept set, and keeps the prompts from which the base really makes the concept.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from efface.config_files import StrictModel, parse
from efface.eval.attack_target import AttackTarget
from efface.registry import Registry

if TYPE_CHECKING:
    from efface.models.base import Base

__all__ = ["ATTACKS", "AdversarialPrompt", "Attack", "AttackConfig", "AttackTarget", "parse_attack_config"]


class AttackConfig(StrictModel):
    """The settings of an attack. Every field has a description that gives its unit and its source."""


@dataclass(frozen=True)
class AdversarialPrompt:
    """A prompt that an attack found."""

    text: str
    strength: float
    """How well the attack thinks of it, in its own unit; the higher, the better."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """How it was found, as JSON."""


class Attack(ABC):
    """A config applied to the unedited base, which it reads and leaves as it was."""

    Config: ClassVar[type[AttackConfig]]

    def __init__(self, base: "Base", config: Any) -> None:
        """config: an instance of `Config`."""
        self.base = base
        self.config = config

    @abstractmethod
    def find(self, target: AttackTarget, seed: int) -> Iterator[AdversarialPrompt]:
        """Candidates one after another, endless or not, as many as the caller takes.

        A function of the base, the config, the target and the seed. Raises UserError where there can be none.
        """


ATTACKS: Registry[type[Attack]] = Registry("attack", "efface.attacks", package="efface.eval.attacks")
"""Attacks, one file each."""


def parse_attack_config(name: str, settings: dict[str, Any]) -> AttackConfig:
    """The attack's defaults, overridden by `settings`. Raises UserError for an unknown attack or field."""
    return parse(ATTACKS.get(name).Config, settings, f"config of attack '{name}'")
