"""`efface attacks`: what searches adversarial prompts, or every field of one attack."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from efface.launch.command import Command
from efface.launch.terminal.listing import Listing

if TYPE_CHECKING:
    from efface.eval.attack import AttackEntry


@dataclass(frozen=True, kw_only=True)
class AttacksOptions:
    """The attacks there are, static (on the base alone) and adaptive (on the edited model), and their settings."""

    name: Annotated[str | None, typer.Argument(help="One attack, with every field of its config.")] = None


def run(options: AttacksOptions) -> Listing:
    """All attacks, or the one called `name`. Raises UserError where there is none."""
    from efface.config_fields import describe
    from efface.eval.attack import ATTACKS, PromptAttack
    from efface.eval.attacking.encoder_budget import BUDGETED, SEARCH_BUDGETED

    found: list[AttackEntry] = []
    for name in ATTACKS.names():
        attack = ATTACKS.get(name)
        note = SEARCH_BUDGETED if issubclass(attack, PromptAttack) else BUDGETED
        found.append({**describe(name, attack), "kind": attack.kind, "note": note})
    return Listing(found).only(options.name, ATTACKS)


def show(listing: Listing) -> None:
    listing.show({"attack": "name", "kind": "kind", "": "summary"})


COMMAND = Command("attacks", AttacksOptions, run, show, as_json=lambda listing: listing.entries)
