"""`efface concepts`: the concept sets, or the concepts of one."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efface.launch.arguments.prompt_window import UNKNOWN_WINDOW, TextEncoderOption, find_window
from efface.launch.command import Command
from efface.launch.terminal.tables import print_table

if TYPE_CHECKING:
    from efface.concepts.concept import ConceptSet


@dataclass(frozen=True, kw_only=True)
class ConceptsOptions:
    """The concept sets, or the concepts of one, checked."""

    name: Annotated[str | None, typer.Argument(help="One concept set by name or file, with its concepts.")] = None
    base: TextEncoderOption = ""


@dataclass(frozen=True)
class ConceptListing:
    """Concept sets; detailed: one was requested, with its concepts; checked: whether against a text encoder."""

    sets: "list[ConceptSet]"
    detailed: bool
    checked: bool = False


def run(options: ConceptsOptions) -> ConceptListing:
    """All sets that ship, or the one called `name`. Raises UserError."""
    from efface.concepts.concept import concept_set_names, load_concept_set
    from efface.concepts.text_window import check_concepts

    if options.name is not None:
        chosen = load_concept_set(options.name)
        window = find_window(options.base, chosen.name)
        if window:
            check_concepts(chosen, window)
        return ConceptListing([chosen], True, window is not None)
    return ConceptListing([load_concept_set(name) for name in concept_set_names()], False)


def show(listing: ConceptListing) -> None:
    if listing.detailed:
        concepts = listing.sets[0].concepts
        print_table(
            ["concept", "kind", "aliases", "anchor", "adjacent"],
            [[c.name, c.kind, c.aliases, c.anchor, c.adjacent] for c in concepts],
        )
        if not listing.checked:
            print(UNKNOWN_WINDOW)
        return
    kinds = [[f"{count} {kind}" for kind, count in s.kinds().items()] for s in listing.sets]
    rows = [[s.name, s.version, len(s.concepts), of_kind] for s, of_kind in zip(listing.sets, kinds, strict=True)]
    print_table(["concept set", "version", "concepts", "kinds"], rows)


def as_json(listing: ConceptListing) -> Any:
    """The one set whole, or name, version and size of each."""
    if listing.detailed:
        return listing.sets[0].model_dump(mode="json")
    return [{"name": s.name, "version": s.version, "concepts": len(s.concepts)} for s in listing.sets]


COMMAND = Command("concepts", ConceptsOptions, run, show, as_json=as_json)
