"""`efface run | plan | status | retry | cancel | logs | gc`."""

import json
import re
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.text import Text

from efface.config_files import list_configs
from efface.errors import UserError, did_you_mean
from efface.launch.output import results_are_in_files

if TYPE_CHECKING:
    from efface.cluster.campaign.plan import Model, Plan
    from efface.cluster.run import Run
    from efface.cluster.scheduler.dispatch import RemainingTasks

LOG_WIDTH = 120
"""Columns of text where there is no terminal that has a width."""


def run(
    campaign: str, out: str | None, overrides: list[str], workers: int | None, address: str | None, part: str | None
) -> None:
    """Run a campaign, or a part of one, and show its leaderboard."""
    from efface.cluster.campaign.spec import read_campaign
    from efface.cluster.run import execute_part, open_run

    share = _parse_part(part) if part is not None else None
    opened = open_run(read_campaign(campaign, overrides), _path(out))
    if share is None:
        execute_and_show(opened, workers, address)
    elif execute_part(opened, *share, _console()):
        raise typer.Exit(1)


def plan(campaign: str, out: str | None, overrides: list[str], rates: str | None, as_json: bool) -> None:
    """What a campaign would do, and what it would cost."""
    from efface.cluster.campaign.cost import estimate
    from efface.cluster.campaign.planner import plan_campaign
    from efface.cluster.campaign.rates import rates_for
    from efface.cluster.campaign.spec import read_campaign
    from efface.cluster.scheduler.dispatch import remaining_tasks
    from efface.cluster.storage.run_folder import RunFolder

    expanded = plan_campaign(read_campaign(campaign, overrides), fetch=False)
    left = remaining_tasks(expanded, RunFolder(_path(out) or f"runs/{expanded.name}"))
    known = rates_for(expanded, rates)
    cost = estimate(expanded, left, known) if known else None
    rows = _rows(expanded, left)
    images_left = sum(len(shard.eval_requests) for shard in left.shards)
    total = {"jobs": len(expanded.jobs), "shards": expanded.shard_count, "images": expanded.images}
    undone = {"jobs": len(left.jobs), "shards": len(left.shards), "images": images_left}
    if as_json:
        whole = {"campaign": expanded.name, "provisional": expanded.provisional, "all": total, "left": undone}
        print(json.dumps({**whole, "estimate": cost.as_json() if cost else None, "models": rows}, indent=2))
        return
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("model", "method", "concepts", "seed", "shards", "images", "state"):
        table.add_column(title)
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row.values()))
    Console(highlight=False).print(table)
    print(", ".join(f"{undone[key]} of {total[key]} {key}" for key in total) + " left to do")
    for line in cost.describe() if cost else ():
        print(line)
    if not cost:
        print(
            f"no rates are known of this machine's device: --rates takes {', '.join(list_configs('rates'))}, or a file"
        )
    if expanded.provisional:
        print(f"base '{expanded.base.name}' is unknown until fetched: ids are provisional, and nothing counts as there")


def status(folder: str, as_json: bool) -> None:
    """How far a run is, who works on it, and on what."""
    from efface.cluster.run import reopen_run, summary
    from efface.cluster.storage.lease import active_driver
    from efface.launch.submit.launch_record import launch_states

    opened = reopen_run(_path(folder))
    found = summary(opened)
    found["driver"] = active_driver(opened.folder.root)
    found["running"] = _running_tasks(opened) if found["driver"] else []
    found["launched"] = [list(row) for row in launch_states(opened.folder.root)]
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    jobs, images = found["jobs"], found["images"]
    failed = f", {jobs['failed']} failed" if jobs["failed"] else ""
    blocked = f", {jobs['blocked']} wait for a failed one" if jobs["blocked"] else ""
    print(
        f"{found['campaign']}: jobs {jobs['done']}/{jobs['all']}{failed}{blocked}, "
        f"images {images['done']}/{images['all']}"
    )
    print(f"  {found['driver']} is at work" if found["driver"] else "  nobody is at work on it")
    for line in found["running"]:
        print(f"  {line}")
    for what, name, state in found["launched"]:
        print(f"  {what} {name}: {state}")
    for failure in found["failures"]:
        print(f"  failed: {failure['job']} ({failure['stage']}): {failure['reason']}")
    if found["failures"]:
        print(f"`efface retry {folder}` tries them again")


def retry(folder: str, jobs: list[str], workers: int | None, address: str | None) -> None:
    """Forget the failures of a run, or of some of its jobs, and go on with it."""
    from efface.cluster.run import reopen_run

    opened = reopen_run(_path(folder))
    failed = opened.remaining_tasks.failed
    wanted = [find_job(opened.plan, job) for job in jobs]
    fine = next((model for model in wanted if model not in failed), None)
    if fine or not failed:
        what = f"job {fine.folder}" if fine else "no job of this run"
        raise UserError(f"{folder}: {what} has {'not ' if fine else ''}failed")
    for model in wanted or failed:
        opened.folder.clear_failure(model)
    execute_and_show(opened, workers, address)


def cancel(folder: str, job: str | None) -> None:
    """Ask whoever works on a run to lay it down, or give up one of its jobs."""
    from efface.cluster.run import reopen_run
    from efface.cluster.storage.lease import active_driver

    opened = reopen_run(_path(folder))
    if job is None:
        opened.folder.request_stop()
        driver = active_driver(opened.folder.root)
        print(f"{driver} has been asked to stop" if driver else "nobody is at work on it; parts of it stop if any run")
        return
    model = find_job(opened.plan, job)
    if opened.folder.record(model) and len(opened.folder.records(opened.plan.shards[model.id])) == len(
        opened.plan.shards[model.id]
    ):
        raise UserError(f"{folder}: job {model.folder} is finished already")
    opened.folder.fail(model, "cancelled", "")
    print(f"{model.folder} is given up; `efface retry {folder} {model.id}` takes it up again")


def logs(folder: str, job: str | None) -> None:
    """What happened to a job, what its training printed, why it failed; without a job all that happened."""
    from efface.cluster.run import reopen_run
    from efface.cluster.storage.journal import read_journal

    opened = reopen_run(_path(folder))
    if job is None:
        for event in read_journal(opened.folder):
            print(_format_event(event, _describe_event(event)))
        return
    model = find_job(opened.plan, job)
    for event in read_journal(opened.folder):
        if model.id in (event.get("id"), event.get("model")):
            print(_format_event(event, f"shard {event['index']}" if event.get("task") == "shard" else "training"))
    log = opened.folder.log(model)
    if log.is_file():
        print(log.read_text(errors="replace").rstrip())
    failure = opened.folder.failure(model)
    if failure:
        print(f"failed ({failure.get('stage')}): {failure.get('reason')}\n{failure.get('details')}".rstrip())


def gc(folder: str, dry_run: bool) -> None:
    """Remove what a run folder needs no more."""
    from efface.cluster.run import reopen_run
    from efface.cluster.storage.gc import collect

    opened = reopen_run(_path(folder))
    found = collect(opened.plan, opened.folder, dry_run)
    if not found:
        print("nothing to remove")
        return
    if dry_run:
        for garbage in found:
            print(f"{garbage.bytes:>15,} bytes  {garbage.path}")
    sizes = Counter[str]()
    for garbage in found:
        sizes[garbage.kind] += garbage.bytes
    for kind, size in sizes.items():
        print(f"{size:>15,} bytes  {kind}")
    print(f"{sizes.total():>15,} bytes in all {'would be ' if dry_run else ''}removed")


def execute_and_show(opened: "Run", workers: int | None, address: str | None) -> None:
    """Do what is missing, show the results, and leave with exit code 1 where a job failed."""
    from efface.cluster.run import execute

    console = _console()
    results = execute(opened, workers, address, console)
    results.show(console)
    if results.failures:
        for failure in results.failures:
            console.print(Text.assemble(("failed", "red"), f": {failure}"), soft_wrap=True)
        console.print(f"`efface retry {opened.folder.root}` tries them again", markup=False, soft_wrap=True)
        raise typer.Exit(1)


def find_job(plan: "Plan", name: str) -> "Model":
    """The job meant by its folder's name, its id, or the beginning of either. Raises UserError."""
    found = [model for model in plan.models if name in (model.id, model.folder)]
    found = found or [m for m in plan.models if name and (m.id.startswith(name) or m.folder.startswith(name))]
    if not found:
        raise UserError(f"'{name}' is no job of this run, {did_you_mean(name, (model.folder for model in plan.jobs))}")
    if len(found) > 1:
        some = ", ".join(model.folder for model in found[:4])
        raise UserError(
            f"'{name}' could be {len(found)} jobs ({some}{', …' if len(found) > 4 else ''}), give more of it"
        )
    return found[0]


def _rows(plan: "Plan", left: "RemainingTasks") -> list[dict[str, Any]]:
    todo, failed_or_blocked = {model.id for model in left.jobs}, {model.id for model in (*left.failed, *left.blocked)}
    unjudged = Counter(shard.model.id for shard in left.shards)

    def state(model: "Model") -> str:
        if model.id in failed_or_blocked:
            return "failed"
        if model.id in todo:
            return "left"
        left_over = unjudged[model.id]
        return f"{left_over} shard{'' if left_over == 1 else 's'} left" if left_over else "done"

    return [
        {
            "id": model.id,
            "method": model.label,
            "concepts": list(model.job.concepts) if model.job else [],
            "seed": model.job.seed if model.job else None,
            "shards": len(plan.shards[model.id]),
            "images": sum(len(shard.eval_requests) for shard in plan.shards[model.id]),
            "state": state(model),
        }
        for model in plan.models
    ]


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value)
    return "" if value is None else str(value)


def _running_tasks(opened: "Run") -> list[str]:
    """What the workers of the driver at work do now, by its journal."""
    from efface.cluster.storage.journal import read_journal

    doing: dict[tuple[int, str], dict[str, Any]] = {}
    for event in read_journal(opened.folder):
        if event["event"] == "opened":
            doing.clear()
        elif event["event"] == "started":
            doing[event["worker"], event["id"]] = event
        elif event["event"] == "ended":
            doing.pop((event["worker"], event["id"]), None)
    return [
        f"worker {worker}  {_describe_event(event)}  since {event['time'][11:19]} UTC"
        for (worker, _), event in sorted(doing.items(), key=lambda item: item[0][0])
    ]


def _describe_event(event: dict[str, Any]) -> str:
    """What piece of work an event of the journal tells of; with the job's id, as `efface logs` takes it."""
    if event.get("task") == "calibration":
        return f"calibration {event['judge']}"
    if "label" not in event:
        return ""
    job = event["model"] if event["task"] == "shard" else event["id"]
    about = f"{event['label']}: {', '.join(map(str, event['concepts'])) or 'the base'} ({job})"
    return f"shard {event['index']} of {about}" if event["task"] == "shard" else f"{event['task']} {about}"


def _format_event(event: dict[str, Any], what: str) -> str:
    """A line for people."""
    worker = f"worker {event['worker']}  " if "worker" in event else ""
    ending = f": {event['state']} after {event['seconds']} s" if "state" in event else ""
    reason = f" ({event['reason']})" if event.get("reason") else ""
    return f"{event['time']}  {worker}{what}{' ' if what else ''}{event['event']}{ending}{reason}"


def _parse_part(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if not found:
        raise UserError(f"--part {text}: should be like 3/16, the third of sixteen parts")
    number, parts = int(found[1]), int(found[2])
    if not 1 <= number <= parts:
        raise UserError(f"--part {text}: should be 1/{parts} to {parts}/{parts}")
    return number, parts


def _path(location: str | None) -> Any:
    from efface.files import as_path

    return None if location is None else as_path(location)


def _console() -> Console:
    # Bound to today's stdout: a worker in this process catches what is printed while it works.
    return Console(file=results_are_in_files(), highlight=False, width=None if sys.stdout.isatty() else LOG_WIDTH)
