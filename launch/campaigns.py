"""`efface run | plan | status | retry`."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.text import Text

from efface.errors import UserError

if TYPE_CHECKING:
    from efface.cluster.run import Run

LOG_WIDTH = 120
"""Columns of text where there is no terminal that has a width."""


def run(campaign: str, out: Path | None, overrides: list[str], workers: int | None, address: str | None) -> None:
    """Run a campaign and show its leaderboard."""
    from efface.cluster.campaign import read_campaign
    from efface.cluster.run import open_run

    carry_out_and_show(open_run(read_campaign(campaign, overrides), out), workers, address)


def retry(folder: Path, workers: int | None, address: str | None) -> None:
    """Forget the failures of a run and go on with it."""
    from efface.cluster.run import reopen_run

    opened = reopen_run(folder)
    failed = opened.remaining.failed
    if not failed:
        raise UserError(f"{folder}: no job of this run has failed")
    for model in failed:
        opened.folder.forgive(model)
    carry_out_and_show(opened, workers, address)


def plan(campaign: str, out: Path | None, overrides: list[str], as_json: bool) -> None:
    """What a campaign would do."""
    from efface.cluster.campaign import read_campaign
    from efface.cluster.dispatch import remaining
    from efface.cluster.expand import plan_campaign
    from efface.cluster.run_folder import RunFolder

    expanded = plan_campaign(read_campaign(campaign, overrides), fetch=False)
    left = remaining(expanded, RunFolder(out or Path("runs") / expanded.name))
    todo = {model.id for model in left.jobs}
    rows = [
        {
            "id": model.id,
            "method": model.label,
            "concepts": list(model.job.concepts) if model.job else [],
            "seed": model.job.seed if model.job else None,
            "shards": len(expanded.shards[model.id]),
            "images": sum(len(shard.questions) for shard in expanded.shards[model.id]),
            "state": "left" if model.id in todo else "failed" if model in left.failed else "there",
        }
        for model in expanded.models
    ]
    images_left = sum(len(shard.questions) for shard in left.shards)
    total = {"jobs": len(expanded.jobs), "shards": expanded.shard_count, "images": expanded.images}
    undone = {"jobs": len(left.jobs), "shards": len(left.shards), "images": images_left}
    if as_json:
        known = {"campaign": expanded.name, "provisional": expanded.provisional}
        print(json.dumps({**known, "all": total, "left": undone, "models": rows}, indent=2))
        return
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("model", "method", "concepts", "seed", "shards", "images", "state"):
        table.add_column(title)
    for row in rows:
        seed = "" if row["seed"] is None else str(row["seed"])
        concepts = ", ".join(map(str, row["concepts"] if isinstance(row["concepts"], list) else ()))
        told = (row["id"], row["method"], concepts, seed, row["shards"], row["images"], row["state"])
        table.add_row(*(Text(str(cell)) for cell in told))
    Console(highlight=False).print(table)
    print(", ".join(f"{undone[key]} of {total[key]} {key}" for key in total) + " left to do")
    if expanded.provisional:
        print(f"base '{expanded.base.name}' is unknown until fetched: ids are provisional, and nothing counts as there")


def status(folder: Path, as_json: bool) -> None:
    """How far a run is."""
    from efface.cluster.run import reopen_run, summary

    found = summary(reopen_run(folder))
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    jobs, images = found["jobs"], found["images"]
    failed = f", {jobs['failed']} failed" if jobs["failed"] else ""
    print(f"{found['campaign']}: jobs {jobs['done']}/{jobs['all']}{failed}, images {images['done']}/{images['all']}")
    for failure in found["failures"]:
        print(f"  failed: {failure['job']} ({failure['stage']}): {failure['reason']}")
    if found["failures"]:
        print(f"`efface retry {folder}` tries them again")


def carry_out_and_show(opened: "Run", workers: int | None, address: str | None) -> None:
    """Do what is missing, show the results, and leave with exit code 1 where a job failed."""
    from efface.cluster.run import carry_out

    # Bound to today's stdout: a worker in this process catches what is printed while it works.
    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else LOG_WIDTH)
    results = carry_out(opened, workers, address, console)
    results.show(console)
    if results.failures:
        for failure in results.failures:
            console.print(Text.assemble(("failed", "red"), f": {failure}"), soft_wrap=True)
        console.print(f"`efface retry {opened.folder.root}` tries them again", markup=False, soft_wrap=True)
        raise typer.Exit(1)
