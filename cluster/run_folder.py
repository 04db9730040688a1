"""The run folder: the one place that knows where everything of a campaign lies, and what is already done.

    campaign.yaml                                  the campaign as it was read
    calibration/<judge>-<id>.json                  how a judge does on images of the base; <judge>-<id>.record.json
    jobs/<job>/delta.safetensors, record.json      a finished job; failure.json instead for one that cannot be
    evaluations/<model>/<shard>.verdicts.parquet   rows of the image table
    evaluations/<model>/<shard>.images.parquet     the images behind them, PNG in Parquet
    evaluations/<model>/<shard>.json               the shard's record
    table.parquet scores.json leaderboard.csv sheets/<concept>.png

A record is written after the outputs it names, with their SHA-256; what has no record is not done. Every write is
atomic, so a run may be killed at any moment and started again.
"""

import json
from pathlib import Path
from typing import Any

from efface.cluster.plan import Calibration, Model, Shard
from efface.errors import UserError
from efface.files import sha256_file, slug, write_atomic, write_json

Work = Calibration | Model | Shard


class RunFolder:
    """Paths, records and results of one campaign."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    # where things lie

    @property
    def campaign(self) -> Path:
        return self.root / "campaign.yaml"

    @property
    def evaluation(self) -> Path:
        """In place of a campaign, where deltas that existed before are judged."""
        return self.root / "evaluation.yaml"

    @property
    def table(self) -> Path:
        return self.root / "table.parquet"

    @property
    def scores(self) -> Path:
        return self.root / "scores.json"

    @property
    def leaderboard(self) -> Path:
        return self.root / "leaderboard.csv"

    @property
    def cache(self) -> Path:
        """Anchor images, concept neighbourhoods: data that jobs share, keyed by content."""
        return self.root / "cache"

    @property
    def sheets(self) -> Path:
        return self.root / "sheets"

    def delta(self, model: Model) -> Path:
        return self._job(model) / "delta.safetensors"

    def verdicts(self, shard: Shard) -> Path:
        return self._evaluation(shard.model) / f"{self._stem(shard)}.verdicts.parquet"

    def images(self, shard: Shard) -> Path:
        return self._evaluation(shard.model) / f"{self._stem(shard)}.images.parquet"

    def calibration(self, trial: Calibration) -> Path:
        return self.root / "calibration" / f"{slug(Path(trial.judge).stem)}-{trial.id}.json"

    # what is done

    def record(self, work: Work) -> dict[str, Any] | None:
        """The record of finished work; None if it is not done, or a file it names is gone."""
        path = self._record(work)
        record = _read_json(path)
        if record is None or record.get("id") != work.id:
            return None
        whole = all((path.parent / name).is_file() for name in record.get("outputs", {}))
        return record if whole else None

    def failure(self, model: Model) -> dict[str, Any] | None:
        """Why a job cannot be finished, if it was tried and failed."""
        return _read_json(self._job(model) / "failure.json")

    def finish(self, work: Work, outputs: list[Path], **facts: Any) -> dict[str, Any]:
        """Write the record of finished work; its outputs lie beside it and are whole."""
        record = {"id": work.id, "outputs": {path.name: sha256_file(path) for path in outputs}, **facts}
        write_json(self._record(work), record)
        if isinstance(work, Model):
            (self._job(work) / "failure.json").unlink(missing_ok=True)
        return record

    def fail(self, work: Model | Shard, reason: str, details: str) -> None:
        """Keep why a job, or a shard of its model, was given up."""
        model = work if isinstance(work, Model) else work.model
        stage = "training" if isinstance(work, Model) else f"judging, shard {work.index}"
        write_json(self._job(model) / "failure.json", {"stage": stage, "reason": reason, "details": details})

    def forgive(self, model: Model) -> None:
        """Forget a failure, so that the job is tried again."""
        (self._job(model) / "failure.json").unlink(missing_ok=True)

    def damaged(self, work: Work) -> list[Path]:
        """Outputs of finished work whose bytes are not those of its record; the record is then withdrawn."""
        record = self.record(work)
        if record is None:
            return []
        folder = self._record(work).parent
        bad = [folder / name for name, sha256 in record["outputs"].items() if sha256_file(folder / name) != sha256]
        if bad:
            self._record(work).unlink()
        return bad

    def open(self, order: Path, text: str) -> None:
        """Make the folder ready for what `text` orders, kept in the file `order` of the folder.

        Raises UserError where the folder holds a run of another order, or cannot be written.
        """
        try:
            if self.root.exists() and not self.root.is_dir():
                raise UserError(f"{self.root}: is a file, should be a folder for the run")
            before = order.read_text(encoding="utf-8", errors="replace") if order.is_file() else text
        except OSError as error:
            raise UserError(f"{order}: cannot be read ({error.strerror})") from None
        if before != text:
            difference = _difference(before, text)
            raise UserError(f"{order}: the run there is of another order ({difference}); give --out another folder")
        write_atomic(order, text.encode())

    def must_exist(self) -> None:
        """Raises UserError where this is no run folder."""
        if not self.campaign.is_file():
            raise UserError(f"{self.root}: is no run folder, it holds no {self.campaign.name}")

    def _job(self, model: Model) -> Path:
        return self.root / "jobs" / model.folder

    def _evaluation(self, model: Model) -> Path:
        return self.root / "evaluations" / model.folder

    def _stem(self, shard: Shard) -> str:
        return f"{shard.index:05d}-{shard.id}"

    def _record(self, work: Work) -> Path:
        if isinstance(work, Calibration):
            return self.calibration(work).with_suffix(".record.json")
        if isinstance(work, Model):
            return self._job(work) / "record.json"
        return self._evaluation(work.model) / f"{self._stem(work)}.json"


def _difference(before: str, now: str) -> str:
    """The lines that two YAML texts do not share, at most three of each."""
    old, new = before.splitlines(), now.splitlines()
    gone = [line.strip() for line in old if line not in new][:3]
    come = [line.strip() for line in new if line not in old][:3]
    return f"there: {', '.join(gone) or 'nothing more'}; asked for now: {', '.join(come) or 'nothing more'}"


def _read_json(path: Path) -> dict[str, Any] | None:
    """The record in a file; None where there is none, or a damaged one: then the work is simply done again."""
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None
