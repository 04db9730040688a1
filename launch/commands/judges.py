"""`efface judges`: the judges that decide whether a concept is in an image."""

from dataclasses import dataclass
from typing import Any

from efface.launch.command import Command
from efface.launch.tables import print_table


@dataclass(frozen=True, kw_only=True)
class JudgesOptions:
    """The judges that decide whether a concept is in an image."""


def run(options: JudgesOptions) -> list[dict[str, Any]]:
    """The file of each judge that is known by name, and its name."""
    from efface.eval.judge_spec import judge_names, read_judge

    return [{"name": name, **read_judge(name).as_json()} for name in judge_names()]


def show(judges: list[dict[str, Any]]) -> None:
    rows = [[judge["name"], judge.get("kind"), judge.get("source")] for judge in judges]
    print_table(["judge", "kind", "model"], rows)


COMMAND = Command("judges", JudgesOptions, run, show, as_json=lambda judges: judges)
