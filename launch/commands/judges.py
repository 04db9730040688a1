"""`efface judges`: the judges that decide whether a concept is in an image, and their kinds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from efface.launch.command import Command
from efface.launch.terminal.listing import Listing
from efface.launch.terminal.tables import print_line, print_table


@dataclass(frozen=True, kw_only=True)
class JudgesOptions:
    """The judges that decide whether a concept is in an image, and the settings of each kind."""

    kind: Annotated[str | None, typer.Argument(help="A kind of judge, with every key that its YAML may have.")] = None


@dataclass(frozen=True)
class JudgeListing:
    """The judges known by name: each with the keys of its YAML. kinds: one where it was requested."""

    judges: list[dict[str, Any]]
    kinds: Listing

    def as_json(self) -> Sequence[Mapping[str, object]]:
        return self.kinds.entries if self.kinds.detailed else self.judges


def run(options: JudgesOptions) -> JudgeListing:
    """The judges, or one of their kinds. Raises UserError for an unknown kind."""
    from efface.config_fields import describe
    from efface.eval.judge import JUDGES
    from efface.eval.judging.judge_spec import judge_names, read_judge

    judges = [{"name": name, **read_judge(name).as_json()} for name in judge_names()]
    kinds = Listing([describe(name, JUDGES.get(name)) for name in JUDGES.names()])
    return JudgeListing(judges, kinds.only(options.kind, JUDGES))


def show(listing: JudgeListing) -> None:
    if listing.kinds.detailed:
        listing.kinds.show({})
        return
    rows = [[judge["name"], judge.get("kind"), judge.get("source")] for judge in listing.judges]
    print_table(["judge", "kind", "model"], rows)
    print_line("")
    listing.kinds.show({"kind": "name", "": "summary"})


COMMAND = Command("judges", JudgesOptions, run, show, as_json=JudgeListing.as_json)
