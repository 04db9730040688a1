"""`efface run | plan | status | retry | cancel | logs | gc`."""

import json
import re
import sys
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.text import Text

from efface.config_files import list_configs
from efface.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from efface.cluster.campaign.plan import Plan
    from efface.cluster.run import Run
    from efface.cluster.storage.journal import Event
    from efface.cluster.storage.remaining import RemainingTasks
    from efface.cluster.tasks.model import Model

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
    from efface.cluster.storage.remaining import remaining_tasks
    from efface.cluster.storage.run_folder import RunFolder

    expanded = plan_campaign(read_campaign(campaign, overrides), fetch=False)
    left = remaining_tasks(expanded, RunFolder(_path(out) or f"runs/{expanded.name}"))
    known = rates_for(expanded, rates)
    cost = estimate(expanded, left.tasks, known) if known else None
    rows = _rows(expanded, left)
    images_left = sum(len(shard.eval_requests) for shard in left.shards)
    total = {"jobs": len(expanded.jobs), "shards": expanded.shard_count, "images": expanded.images}
    undone = {"jobs": len(left.trainings), "shards": len(left.shards), "images": images_left}
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
    from efface.cluster.run import reopen_run
    from efface.cluster.storage.lease import active_driver
    from efface.cluster.summary import summarize
    from efface.launch.submit.launch_record import launch_states

    opened = reopen_run(_path(folder))
    found = summarize(opened.plan, opened.folder)
    driver = active_driver(opened.folder.root)
    running = _running_tasks(opened) if driver else []
    launched = [list(row) for row in launch_states(opened.folder.root)]
    if as_json:
        whole = {**asdict(found), "driver": driver, "running": running, "launched": launched}
        print(json.dumps(whole, indent=2, ensure_ascii=False))
        return
    jobs = found.jobs
    failed = f", {jobs.failed} failed" if jobs.failed else ""
    blocked = f", {jobs.blocked} wait for a failed one" if jobs.blocked else ""
    kinds = "".join(f", {kind.unit}s {kind.done}/{kind.all}" for kind in found.tasks.values() if kind.unit == "image")
    print(f"{found.campaign}: jobs {jobs.done}/{jobs.all}{failed}{blocked}{kinds}")
    print(f"  {driver} is at work" if driver else "  nobody is at work on it")
    for line in running:
        print(f"  {line}")
    for what, name, state in launched:
        print(f"  {what} {name}: {state}")
    for failure in found.failures:
        print(f"  failed: {failure.job} ({failure.stage}): {failure.reason}")
    if found.failures:
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
    tasks = [task for task in opened.plan.tasks if task.model == model]
    if len(opened.folder.records(tasks)) == len(tasks):
        raise UserError(f"{folder}: job {model.folder} is finished already")
    opened.folder.fail(model, "training", "cancelled")
    print(f"{model.folder} is given up; `efface retry {folder} {model.id}` takes it up again")


def logs(folder: str, job: str | None) -> None:
    """What happened to a job, what its training printed, why it failed; without a job all that happened."""
    from efface.cluster.run import reopen_run
    from efface.cluster.storage.journal import read_journal

    opened = reopen_run(_path(folder))
    if job is None:
        for event in read_journal(opened.folder):
            print(_format_event(event))
        return
    model = find_job(opened.plan, job)
    for event in read_journal(opened.folder):
        if getattr(event, "model", None) == model.id:
            print(_format_event(event))
    log = opened.folder.log(model)
    if log.is_file():
        print(log.read_text(errors="replace").rstrip())
    failure = opened.folder.failure(model)
    if failure:
        print(f"failed ({failure.stage}): {failure.reason}\n{failure.details}".rstrip())


def gc(folder: str, dry_run: bool) -> None:
    """Remove what a run folder needs no more."""
    from efface.cluster.run import reopen_run
    from efface.cluster.storage.gc import collect

    removed = collect(reopen_run(_path(folder)), dry_run)
    if not removed:
        print("nothing to remove")
        return
    for what, size in removed.items():
        print(f"{size:>15,} bytes  {what}")
    print(f"{sum(removed.values()):>15,} bytes in all {'would be ' if dry_run else ''}removed")


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
    todo = {task.id for task in left.trainings}
    failed_or_blocked = {model.id for model in (*left.failed, *left.blocked)}
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
    from efface.cluster.storage.journal import read_journal, running_tasks

    return [
        f"worker {event.worker}  {event.description} ({event.model or event.id})  since {event.time[11:19]} UTC"
        for event in running_tasks(read_journal(opened.folder))
    ]


def _format_event(event: "Event") -> str:
    """A line for people."""
    from efface.cluster.storage.journal import TaskEnded, TaskStarted

    if not isinstance(event, TaskStarted | TaskEnded):
        return f"{event.time}  {event.event}"
    line = f"{event.time}  worker {event.worker}  {event.description} ({event.model or event.id}) {event.event}"
    if isinstance(event, TaskStarted):
        return line
    return f"{line}: {event.state} after {event.seconds} s" + (f" ({event.reason})" if event.reason else "")


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
    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else LOG_WIDTH)
