"""A worker that only pretends: images and verdicts are hashes of what they should be made from, so all are known.

It keeps the contract of `Worker` to the letter (run folder, records, checkpoints, chains, stopping) and takes no time
but what its subclasses set. Chaos, scale and scheduling are tried with it; whatever a disturbed run comes to must equal
`expected`, which is computed without any run.
"""

import hashlib
import io
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from ray import cloudpickle

from efface.cluster.campaign.plan import Plan
from efface.cluster.storage.lease import check_shared
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.tasks.calibration import ANSWERS, CALIBRATION, CalibrationPart, CalibrationTask
from efface.cluster.tasks.judging import IMAGES, VERDICTS, Shard
from efface.cluster.tasks.model import Model
from efface.cluster.tasks.retry_rules import Outcome
from efface.cluster.tasks.task import DamagedInput, Task
from efface.cluster.tasks.training import TrainingTask, training_facts
from efface.cluster.workers.executor import Ready
from efface.cluster.workers.worker import WorkerContext
from efface.errors import Stopped, StorageError
from efface.eval.judging.image_table import IMAGE_SCHEMA, SCHEMA, write_table
from efface.files import as_path, write_atomic, write_json
from efface.train.training_metrics import TrainingMetrics

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers do not have the tests on their path

STEPS = 20
"""Optimiser steps of every pretended training."""

SIDE = 8
"""Pixels of a pretended image."""


class FakeWorker:
    """Instead of a `Worker`; subclasses set the times."""

    job_seconds = 0.0
    shard_seconds = 0.0
    effects: str | None = None
    """A file to which a line is appended for every step and every shard that is done, to count what is done again."""

    def __init__(self, context: WorkerContext, should_stop: Callable[[], bool] | None = None) -> None:
        check_shared(as_path(context.root), context.lease)
        self.context = context
        self.folder = RunFolder(context.root)
        self._should_stop = should_stop or (lambda: self.folder.stop_request() not in (None, context.stop_request))

    def ready(self) -> Ready:
        return Ready(socket.gethostname())

    def run(self, task: Task) -> Outcome:
        """Pretend a task; its outputs and record are real files in the run folder. Unknown kinds are really run."""
        self._start = time.perf_counter()
        try:
            if not self.folder.record(task):  # else a worker that went out of reach has finished it all the same
                PRETENDED.get(task.kind, lambda worker, task: task.run(worker))(self, task)
        except Stopped:
            return Outcome.stopped()
        except DamagedInput as error:
            self.folder.withdraw(error.record)
            return Outcome.damaged(str(error))
        except StorageError as error:
            return Outcome.storage(str(error))
        return Outcome.done()

    def run_pack(self, tasks: Sequence[Task]) -> list[Outcome]:
        """Pretend several, one after another."""
        return [self.run(task) for task in tasks]

    def finish(self, task: Task, outputs: list[Path], note: str = "", **facts: Any) -> None:
        """The record, as a `Worker` writes it."""
        self.folder.finish(task, outputs, seconds=time.perf_counter() - self._start, device="fake", **facts)

    def _calibrate(self, task: CalibrationTask) -> None:
        path = self.folder.output(task, CALIBRATION)
        write_json(path, _calibration(self.context, task))
        self.finish(task, [path])

    def _answer(self, task: CalibrationPart) -> None:
        path = self.folder.output(task, ANSWERS)
        write_json(path, {"answers": []})
        self.finish(task, [path])

    def _train(self, task: TrainingTask) -> None:
        model = task.model
        parent, checkpoint = self.folder.intact_parent_delta(model), self.folder.checkpoint(model)
        step, state = 0, initial_state(model, parent.read_bytes() if parent else b"")
        if checkpoint.is_file():
            step, state = _unpack_checkpoint(checkpoint.read_bytes()) or (step, state)
        while step < STEPS:
            time.sleep(self.job_seconds / STEPS)
            step, state = step + 1, advance(state)
            self._log_effect(f"step {model.id} {step}")
            if step % self.context.checkpoint_steps == 0:
                write_atomic(checkpoint, _pack_checkpoint(step, state))
            if self._should_stop():
                write_atomic(checkpoint, _pack_checkpoint(step, state))
                raise Stopped
        path = self.folder.delta(model)
        write_atomic(path, state)
        metrics = TrainingMetrics(seconds=1.0, samples_seen=STEPS)
        self.finish(task, [path], **training_facts(model, metrics, _weight_change(state)))
        checkpoint.unlink(missing_ok=True)

    def _judge(self, shard: Shard) -> None:
        time.sleep(self.shard_seconds)
        delta = self.folder.intact_delta(shard.model).read_bytes() if shard.model.job else b""
        verdicts, images = judged(self.context, shard, delta)
        outputs = [self.folder.output(shard, VERDICTS), self.folder.output(shard, IMAGES)]
        for path, table in zip(outputs, (verdicts, images), strict=True):
            write_table(path, table)
        self._log_effect(f"shard {shard.id}")
        self.finish(shard, outputs, images=len(shard.eval_requests))

    def _log_effect(self, line: str) -> None:
        if self.effects:
            with open(self.effects, "a") as file:
                file.write(line + "\n")


PRETENDED: dict[str, Callable[[Any, Any], None]] = {
    "calibration": FakeWorker._calibrate,
    "calibration-part": FakeWorker._answer,
    "training": FakeWorker._train,
    "judging": FakeWorker._judge,
}
"""How each kind is pretended."""


def expected(plan: Plan, context: WorkerContext) -> pa.Table:
    """The whole image table of a plan, with no run: rows in the order of `gather`."""
    deltas: dict[str, bytes] = {}
    parts = []
    for model in plan.models:
        state = initial_state(model, deltas[model.predecessor] if model.predecessor else b"")
        for _ in range(STEPS):
            state = advance(state)
        deltas[model.folder] = state if model.job else b""
        parts += [judged(context, shard, deltas[model.folder])[0] for shard in plan.shards[model.id]]
    return pa.concat_tables(parts)


def initial_state(model: Model, parent: bytes) -> bytes:
    """The state before the first step: of the job, and of the delta it continues."""
    return _hash(model.id.encode(), parent)


def advance(state: bytes) -> bytes:
    """One step further: what was done twice, or left out, shows in the end."""
    return _hash(state)


def _pack_checkpoint(step: int, state: bytes) -> bytes:
    """A checkpoint, with a hash of itself in front."""
    return _hash(b"%08d" % step, state) + b"%08d" % step + state


def _unpack_checkpoint(checkpoint: bytes) -> tuple[int, bytes] | None:
    """Step and state; None of a damaged one, which counts for nothing."""
    check, step, state = checkpoint[:32], checkpoint[32:40], checkpoint[40:]
    return (int(step), state) if check == _hash(step, state) else None


def judged(context: WorkerContext, shard: Shard, delta: bytes) -> tuple[pa.Table, pa.Table]:
    """Verdicts and images of a shard; presence and score are bits of the image's hash."""
    rows, pictures = [], []
    for question in shard.eval_requests:
        seed = _hash(delta, context.base_id.encode(), context.recipe.id.encode(), question.prompt.encode())
        pixels = _pixels(_hash(seed, str(question.seed).encode()))
        sha256 = hashlib.sha256(f"{SIDE}x{SIDE}x3 ".encode() + pixels.tobytes()).hexdigest()
        about = {"prompt": question.prompt, "seed": question.seed, "recipe_id": context.recipe.id}
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, format="PNG")
        pictures.append({"image_sha256": sha256, **about, "png": png.getvalue()})
        for ask in question.asks:
            for calibration in context.calibrations:
                score = _hash(sha256.encode(), ask.asked_concept.encode(), calibration.id.encode())[0] / 255
                rows.append(
                    {
                        "model_id": shard.model.id,
                        "base_id": context.base_id,
                        "method": shard.model.label,
                        "concept": ask.concept,
                        "axis": ask.axis,
                        "asked_concept": ask.asked_concept,
                        "prompt_id": ask.prompt_id,
                        **about,
                        "judge": calibration.judge.rpartition("/")[2].removesuffix(".yaml"),
                        "judge_version": calibration.id,
                        "present": score >= 0.5,
                        "score": score,
                        "image_sha256": sha256,
                    }
                )
    return pa.Table.from_pylist(rows, schema=SCHEMA), pa.Table.from_pylist(pictures, schema=IMAGE_SCHEMA)


def _pixels(seed: bytes) -> np.ndarray:
    return np.frombuffer(b"".join(_hash(seed, bytes([i])) for i in range(6)), np.uint8).reshape(SIDE, SIDE, 3)


def _weight_change(state: bytes) -> dict[str, Any]:
    size = state[0] / 255
    of_part = {
        "challenge": size / 1e9,
        "global_l2": size,
        "relative_l2": size / 10,
        "global_l1": size,
        "changed_tensors": 1,
        "parameters": 1,
    }
    return {"all": of_part, "unet": of_part, "groups": {}}


def _calibration(context: WorkerContext, calibration: CalibrationTask) -> dict[str, Any]:
    right = {"recall": 1.0, "specificity": 1.0, "own": 1, "others": 1, "unreadable": 0}
    return {
        "judge": calibration.judge,
        "weights": "0" * 64,
        "judge_version": calibration.id,
        "base_id": context.base_id,
        "recipe_id": context.recipe.id,
        "prompts_sha256": context.prompt_set.sha256,
        "thresholds": {},
        "accuracy": {concept.name: right for concept in context.judged},
    }


def _hash(*parts: bytes) -> bytes:
    return hashlib.sha256(b"\0".join(parts)).digest()
