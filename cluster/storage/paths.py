"""Where everything of a run is: the one class that knows the names in a run folder.

    run.json                                       the sign of a run folder, with the version of its format
    campaign.yaml                                  the campaign as it was read (evaluation.yaml, search.yaml: instead)
    calibration/<judge>-<id>.calibration.json      how a judge does on images of the base
    prompts/<concept>-<id>.candidates.json         adversarial prompts that a search found, and of these, in
    prompts/<concept>-<id>-<id>.prompts.json       another file, what is asked
    jobs/<job>/delta.safetensors, record.json      a finished training; failure.json: the model was given up;
                                                   log.txt; checkpoint.safetensors while it is trained
    evaluations/<model>/<shard>.verdicts.parquet   rows of the image table
    evaluations/<model>/<shard>.images.parquet     the images behind them, PNG in Parquet
    <kind>/<model>/<id>.<name>                     outputs of a task of another kind
    <kind>/<model>/<stem>.progress                 how many images are made, while a task is under way
    table.parquet scores.json leaderboard.csv sheets/<concept>.png stages/<method>-<id>.csv
    report.html report.csv report.md               the report, which needs no other file; report-tables.csv: all of its
                                                   numbers; report-images/: on request
    leases/ logs/ stop.json                        who works on it, what happened, and a request to stop

Each task says in which folder its files are and how their names begin; its record, `<stem>.json`, is beside them.
"""

from pathlib import Path

from efface.cluster.tasks.model import Model
from efface.cluster.tasks.task import Task
from efface.files import as_path, content_id, slug

COUNT = "progress"
"""The end of the name of a file that is there only while a task is under way."""


class RunPaths:
    """The paths of one run. The folder is local, on a shared file system, or on an object store."""

    def __init__(self, root: str | Path) -> None:
        self.root = as_path(root)

    @property
    def sign(self) -> Path:
        """What makes a folder a run folder."""
        return self.root / "run.json"

    @property
    def campaign(self) -> Path:
        return self.root / "campaign.yaml"

    @property
    def evaluation(self) -> Path:
        """Instead of a campaign, where deltas that existed before are judged."""
        return self.root / "evaluation.yaml"

    @property
    def stop_file(self) -> Path:
        return self.root / "stop.json"

    @property
    def table(self) -> Path:
        return self.root / "table.parquet"

    @property
    def scores(self) -> Path:
        return self.root / "scores.json"

    @property
    def attacks(self) -> Path:
        """Attacks on the models, a row for each method and attack."""
        return self.root / "attacks.csv"

    @property
    def leaderboard(self) -> Path:
        return self.root / "leaderboard.csv"

    @property
    def report(self) -> Path:
        """What people look at: one HTML file, with its numbers as CSV and Markdown beside it."""
        return self.root / "report.html"

    def stages(self, label: str) -> Path:
        """The scores of a chain of requests after each of them."""
        return self.root / "stages" / f"{slug(label)}-{content_id(label)[:8]}.csv"

    @property
    def cache(self) -> Path:
        """Anchor images, concept neighbourhoods: data that jobs share, keyed by content."""
        return self.root / "cache"

    @property
    def sheets(self) -> Path:
        return self.root / "sheets"

    @property
    def logs(self) -> Path:
        """The journals of drivers, one file or more for each."""
        return self.root / "logs"

    def job(self, model: Model) -> Path:
        """What belongs to a model: of its training, and why it was given up."""
        return self.root / "jobs" / model.folder

    def delta(self, model: Model) -> Path:
        return self.job(model) / "delta.safetensors"

    def control(self, id: str) -> Path:
        """The delta of a model that never knew some concept, which attacks are compared on."""
        return self.root / "controls" / f"{id}.safetensors"

    def parent_delta(self, model: Model) -> Path | None:
        """Of the model that this one continues, in a chain of requests."""
        return self.root / "jobs" / model.predecessor / "delta.safetensors" if model.predecessor else None

    def checkpoint(self, model: Model) -> Path:
        return self.job(model) / "checkpoint.safetensors"

    def curves(self, model: Model) -> Path:
        """Loss, learning rate and gradient norm of a job's training, where its campaign requests them."""
        return self.job(model) / "curves"

    def log(self, model: Model) -> Path:
        """What a job's training printed."""
        return self.job(model) / "log.txt"

    def failure_file(self, model: Model) -> Path:
        return self.job(model) / "failure.json"

    def output(self, task: Task, name: str) -> Path:
        """A file that a task writes."""
        return self.root / task.folder / f"{task.stem}.{name}"

    def task_log(self, task: Task) -> Path | None:
        """What a task printed, where that is kept; while it runs, up to some seconds ago."""
        return self.root / task.folder / task.log if task.log else None

    def count_file(self, task: Task) -> Path:
        """How many images of a task are made, while it is under way."""
        return self.root / task.folder / f"{task.stem}.{COUNT}"

    def record_file(self, task: Task) -> Path:
        """The record of a task."""
        return self.root / task.folder / f"{task.stem}.json"
