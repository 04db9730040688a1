"""What an attack is: a strict config, and a way to bring a concept back from a model that was made to forget it.

    @ATTACKS.register("unlearn-diff-atk")
    class UnlearnDiffAtk(Attack):
        Config = UnlearnDiffAtkConfig

        def attempts(self, oracle: Oracle, instance: Instance) -> Iterator[Attempt]: ...

An attack is *adaptive* where it looks at the edited model, and *static* where it knows the base alone (`PromptAttack`):
its prompts are the same for every model, so they make the adversarial axis. The two are never mixed in one number.
One file each in `eval/attacks/`, or an entry point of the group `efface.attacks`. `oracle.py` is what an attack may
ask, within a budget; `attack_run.py` runs one and judges what it makes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from efface.config_fields import Entry
from efface.config_files import StrictModel, parse
from efface.errors import UserError
from efface.eval.attack_target import AttackTarget
from efface.files import content_id
from efface.registry import Registry

if TYPE_CHECKING:
    from efface.eval.oracle import Attempt, Instance, Oracle
    from efface.models.base import Base

__all__ = [
    *("ATTACKS", "CANDIDATES", "AdversarialPrompt", "Attack", "AttackConfig", "AttackKind", "AttackTarget"),
    *("PromptAttack", "attack_id", "parse_attack_config", "prompt_attack"),
]

CANDIDATES = 6
"""Prompts of a static attack that are tried on each instance, or checked in one round."""

AttackKind = Literal["static", "adaptive"]


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
    """A config applied to a base, in place of whose weights a delta may lie."""

    version: ClassVar[int] = 1
    """Goes up when the same config would try something else; part of the id of whatever the attack comes to."""
    Config: ClassVar[type[AttackConfig]]
    kind: ClassVar[AttackKind] = "adaptive"
    caveat: ClassVar[str] = ""
    """What a success does not show, in a sentence without its end."""

    def __init__(self, base: "Base", config: Any) -> None:
        """config: an instance of `Config`."""
        self.base = base
        self.config = config
        self.remark = ""
        """What is to be known of what it tries, said with every result."""

    @property
    def tests(self) -> int:
        """Images of each instance whose model calls `prepare` has to leave, besides the direct one."""
        return 1

    @classmethod
    def read(cls, config: Any) -> str:
        """A hash of what the attack reads of files that its config names; "": nothing. Raises UserError."""
        return ""

    def prepare(self, oracle: "Oracle", target: AttackTarget, seed: int) -> None:
        """What is done once for all instances, on a budget that leaves their direct images and `tests`."""
        self.target = target
        self.seed = seed

    @abstractmethod
    def attempts(self, oracle: "Oracle", instance: "Instance") -> Iterator["Attempt"]:
        """Images that may show the concept, one attempt after another, until the caller has enough.

        A function of the models, the config, the target, the seed and the instance. Raises BudgetExhausted, and
        NotFinite where numbers went astray.
        """


class PromptAttack(Attack):
    """A search for prompts against the unedited base's text encoder, which it reads and leaves as it was."""

    kind: ClassVar[AttackKind] = "static"

    @abstractmethod
    def find(self, target: AttackTarget, seed: int) -> Iterator[AdversarialPrompt]:
        """Candidates one after another, endless or not, as many as the caller takes.

        A function of the base, the config, the target and the seed. Raises UserError where there can be none.
        """

    def strongest(self, target: AttackTarget, seed: int, count: int) -> list[AdversarialPrompt]:
        """What is allowed of the first `count` prompts that it finds, each text once, the strongest first.

        A budget that ends on the way leaves what was found until then; raises BudgetExhausted where that is nothing.
        """
        from efface.eval.oracle import BudgetExhausted

        found: dict[str, AdversarialPrompt] = {}
        try:
            for prompt in islice(self.find(target, seed), count):
                found[prompt.text] = prompt
        except BudgetExhausted:
            if not found:
                raise
        allowed = [prompt for text, prompt in found.items() if not target.banned.matches(text)]
        return sorted(allowed, key=lambda prompt: prompt.strength, reverse=True)

    def prepare(self, oracle: "Oracle", target: AttackTarget, seed: int) -> None:
        super().prepare(oracle, target, seed)
        with oracle.unedited():
            self.found = self.strongest(target, seed, CANDIDATES)

    def attempts(self, oracle: "Oracle", instance: "Instance") -> Iterator["Attempt"]:
        for prompt in self.found:
            yield oracle.attempt(oracle.encode(prompt.text), instance.seed, prompt=prompt.text)


ATTACKS: Registry[type[Attack]] = Registry("attack", "efface.attacks", package="efface.eval.attacks")
"""Attacks, one file each."""


class AttackEntry(Entry):
    """An attack, as `efface attacks --json` lists it."""

    kind: str
    """static or adaptive"""


def parse_attack_config(name: str, settings: dict[str, Any]) -> AttackConfig:
    """The attack's defaults, overridden by `settings`. Raises UserError for an unknown attack or field."""
    return parse(ATTACKS.get(name).Config, settings, f"config of attack '{name}'")


def attack_id(name: str, config: AttackConfig) -> str:
    """16 hex digits over all that decides what an attack does. Raises UserError where a file of it cannot be read."""
    attack = ATTACKS.get(name)
    return content_id([name, attack.version, config.model_dump(mode="json"), attack.read(config)])


def prompt_attack(name: str) -> type[PromptAttack]:
    """A static attack by name. Raises UserError for one that needs an edited model, and for an unknown one."""
    found = ATTACKS.get(name)
    if not issubclass(found, PromptAttack):
        static = [other for other in ATTACKS.names() if issubclass(ATTACKS.get(other), PromptAttack)]
        raise UserError(f"attack '{name}' needs an edited model, prompts for all are found by {', '.join(static)}")
    return found
