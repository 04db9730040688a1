"""The worker: a base and its judges, resident in one process, that trains jobs and judges shards one after another.

It knows nothing of Ray. The same class runs inside a Ray actor, in the driver's own process, or in a test.
"""

import io
import os
import traceback
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from efface.cluster.plan import Calibration, Model, Shard
from efface.cluster.run_folder import RunFolder, Work
from efface.concepts.concept import Concept, ConceptSet
from efface.concepts.prompts import PromptSet
from efface.errors import JobFailure, UserError
from efface.models.base import BaseSpec
from efface.models.recipe import Recipe

if TYPE_CHECKING:
    from efface.eval.judges.judge import Judge

CALIBRATION_SEEDS = (10_000, 10_001)
"""Image seeds of a judge's trial, apart from those of a campaign: one to fit on, one to measure on."""


@dataclass(frozen=True)
class Setting:
    """What all work of a campaign shares; small, and sent to every worker once."""

    root: str
    base: BaseSpec
    base_id: str
    concept_set: ConceptSet
    recipe: Recipe
    prompt_set: PromptSet
    calibrations: tuple[Calibration, ...]
    judged: tuple[Concept, ...]
    """Every concept that a judge will be asked about."""
    cpus: int
    gpus: float


@dataclass(frozen=True)
class Outcome:
    """How a piece of work ended.

    `failed`: it cannot be done as asked, and trying again would not help. `fault`: something broke on the way.
    """

    state: Literal["done", "failed", "fault"]
    reason: str = ""
    details: str = ""


class Worker:
    """Holds the base; `run` does one piece of work and leaves its outputs and record in the run folder."""

    def __init__(self, setting: Setting) -> None:
        import torch

        from efface.models.base import load_base

        torch.set_num_threads(setting.cpus)
        self.device = "cuda" if setting.gpus and torch.cuda.is_available() else "cpu"
        if self.device == "cuda" and setting.gpus < 1:
            torch.cuda.set_per_process_memory_fraction(setting.gpus)
        self.setting = setting
        self.folder = RunFolder(setting.root)
        self.base = load_base(setting.base, self.device)
        if self.base.fingerprint != setting.base_id:
            raise UserError(
                f"base '{setting.base.name}' has fingerprint {self.base.fingerprint[:16]} on this node, "
                f"and {setting.base_id[:16]} where the campaign was planned"
            )
        self._judges: dict[str, Judge] = {}
        self._resident = self.base.fingerprint[:16]

    def ready(self) -> int:
        """The process id, once everything is loaded."""
        return os.getpid()

    def run(self, work: Work) -> Outcome:
        """Train a job or judge a shard. Never raises: what goes wrong is told in the outcome, with its log."""
        log = io.StringIO()
        try:
            with redirect_stdout(log), redirect_stderr(log):
                if isinstance(work, Calibration):
                    self._calibrate(work)
                elif isinstance(work, Model):
                    self._train(work)
                else:
                    self._judge(work)
        except (JobFailure, UserError) as error:
            return Outcome("failed", str(error), log.getvalue() + traceback.format_exc())
        except Exception as error:
            return Outcome("fault", f"{type(error).__name__}: {error}", log.getvalue() + traceback.format_exc())
        return Outcome("done")

    def _calibrate(self, trial: Calibration) -> None:
        from efface.eval.calibration import calibrate
        from efface.eval.judges.judge import load_judge

        self._put(None)
        judge = load_judge(trial.judge, self.device)
        setting = self.setting
        _, found = calibrate(
            judge,
            self.base,
            setting.recipe,
            setting.concept_set,
            setting.prompt_set,
            setting.judged,
            CALIBRATION_SEEDS,
        )
        path = self.folder.calibration(trial)
        found.save(path)
        self.folder.finish(trial, [path])

    def _train(self, model: Model) -> None:
        from efface.eval.weight_change import weight_change
        from efface.train.job import run_job

        assert model.job
        self._put(None)
        delta, metrics = run_job(model.job, self.base, self.setting.concept_set, cache=self.folder.cache)
        path = self.folder.delta(model)
        delta.save(path)
        change = weight_change(self.base, delta)
        self.folder.finish(
            model,
            [path],
            label=model.label,
            job=model.job.model_dump(mode="json"),
            metrics=metrics,
            weight_change=change,
        )

    def _judge(self, shard: Shard) -> None:
        from efface.eval.evaluate import evaluate
        from efface.eval.table import write_table

        self._put(shard.model)
        verdicts, images = evaluate(
            self.base,
            self.setting.recipe,
            shard.questions,
            [self._judge_of(trial) for trial in self.setting.calibrations],
            self.setting.concept_set,
            model_id=shard.model.id,
            method=shard.model.label,
        )
        outputs = [self.folder.verdicts(shard), self.folder.images(shard)]
        for path, table in zip(outputs, (verdicts, images), strict=True):
            write_table(path, table)
        self.folder.finish(shard, outputs, images=len(shard.questions))

    def _judge_of(self, trial: Calibration) -> "Judge":
        from efface.eval.judges.judge import load_judge

        if trial.id not in self._judges:
            self._judges[trial.id] = load_judge(trial.judge, self.device, self.folder.calibration(trial))
        return self._judges[trial.id]

    def _put(self, model: Model | None) -> None:
        """Make the resident base the given model, or itself again."""
        from efface.models.delta import Delta

        wanted = model.id if model else self.base.fingerprint[:16]
        if wanted != self._resident:
            edited = model is not None and model.job is not None
            self.base.swap(Delta.load(self.folder.delta(model)) if edited and model else None)
            self._resident = wanted
