"""Events of a run's journal as lines for people. A journal may come from anybody: every value is shown as text."""

from typing import TYPE_CHECKING, Any

from efface.text import shown

if TYPE_CHECKING:
    from efface.cluster.run import Run

Event = dict[str, Any]
"""One line of the journal: JSON."""


def describe_task(event: Event) -> str:
    """Which task an event is about; with the job's id, as `efface logs` takes it."""
    if event.get("task") == "calibration":
        return f"calibration {shown(str(event['judge']))}"
    if "label" not in event:
        return ""
    job = event["model"] if event["task"] == "shard" else event["id"]
    concepts = ", ".join(map(str, event["concepts"])) or "the base"
    about = shown(f"{event['label']}: {concepts} ({job})")
    return f"shard {shown(str(event['index']))} of {about}" if event["task"] == "shard" else f"{event['task']} {about}"


def format_event(event: Event, task: str) -> str:
    """A line: when, which worker, which task, what happened, and why it failed."""
    worker = f"worker {event['worker']}  " if "worker" in event else ""
    ending = f": {event['state']} after {event['seconds']} s" if "state" in event else ""
    reason = f" ({event['reason']})" if event.get("reason") else ""
    return shown(f"{event['time']}  {worker}{task}{' ' if task else ''}{event['event']}{ending}{reason}")


def running_tasks(run: "Run") -> list[str]:
    """What the workers of the active driver do now, by its journal."""
    from efface.cluster.storage.journal import read_journal

    running: dict[tuple[int, str], Event] = {}
    for event in read_journal(run.folder):
        if event["event"] == "opened":
            running.clear()
        elif event["event"] == "started":
            running[event["worker"], event["id"]] = event
        elif event["event"] == "ended":
            running.pop((event["worker"], event["id"]), None)
    return [
        shown(f"worker {worker}  {describe_task(event)}  since {event['time'][11:19]} UTC")
        for (worker, _), event in sorted(running.items(), key=lambda item: item[0][0])
    ]
