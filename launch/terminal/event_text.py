"""Events of a run's journal as lines for people. A journal may come from anybody: every value is shown as text."""

from typing import TYPE_CHECKING

from efface.text import shown

if TYPE_CHECKING:
    from efface.cluster.run import Run
    from efface.cluster.storage.journal import Event


def format_event(event: "Event") -> str:
    """A line: when, which worker, which task and model's id, what happened, and why it failed."""
    from efface.cluster.storage.journal import TaskEnded, TaskStarted

    if not isinstance(event, TaskStarted | TaskEnded):
        return shown(f"{event.time}  {event.event}")
    line = f"{event.time}  worker {event.worker}  {event.description} ({event.model or event.id}) {event.event}"
    if isinstance(event, TaskStarted):
        return shown(line)
    reason, note = f" ({event.reason})" if event.reason else "", f"; {event.note}" if event.note else ""
    return shown(f"{line}: {event.state} after {event.seconds} s{reason}{note}")


def running_task_lines(run: "Run") -> list[str]:
    """What the workers of the active driver do now, by its journal."""
    from efface.cluster.storage.journal import read_journal, running_tasks

    return [
        shown(f"worker {event.worker}  {event.description} ({event.model or event.id})  since {event.time[11:19]} UTC")
        for event in running_tasks(read_journal(run.folder))
    ]
