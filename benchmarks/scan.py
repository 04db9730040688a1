"""How long a resume looks at 100,000 finished shards; `python -m benchmarks.scan` writes benchmarks/results/scan.json.

The records of the campaign of `plan.py`, as far as it has so many shards, are written first, with small outputs of the
right size and hash. What is timed is `remaining_tasks`: everything a driver does before it knows what is left.
"""

import hashlib
import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.plan import large_campaign
from benchmarks.record import write_result
from efface.cluster.campaign.plan import Plan
from efface.cluster.campaign.planner import plan_campaign
from efface.cluster.storage.records import Output, Record
from efface.cluster.storage.remaining import remaining_tasks
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.tasks.calibration import ANSWERS, CALIBRATION, CalibrationPart
from efface.cluster.tasks.judging import IMAGES, VERDICTS, Shard
from efface.cluster.tasks.model import Model
from efface.cluster.tasks.task import Task
from efface.files import content_id

SHARDS = 100_000
OUTPUT = b"0" * 64
REPEATS = 3


def main() -> None:
    plan = cut(plan_campaign(large_campaign(), fetch=False), SHARDS)
    with tempfile.TemporaryDirectory(prefix="scan-") as root:
        folder = RunFolder(root)
        finish_all(plan, folder)
        seconds, cpu = [], []
        for _ in range(REPEATS):
            start, cpu_start = time.perf_counter(), time.process_time()
            remaining = remaining_tasks(plan, folder)
            seconds.append(round(time.perf_counter() - start, 2))
            cpu.append(round(time.process_time() - cpu_start, 2))
            assert remaining.is_empty
        size = sum(1 for _ in Path(root).rglob("*"))
    found = {"jobs": len(plan.jobs), "shards": plan.shard_count, "files_and_folders": size}
    print(f"{plan.shard_count:,} finished shards of {len(plan.jobs):,} jobs: {min(seconds):.2f} s, ", end="")
    print(f"of them {min(cpu):.2f} s on the processor")
    print(write_result("scan", {**found, "seconds": seconds, "cpu_seconds": cpu}, load=os.getloadavg()))


def cut(plan: Plan, shards: int) -> Plan:
    """The first models of a plan that have so many shards together; every image a shard of its own."""
    kept: list[Shard] = []
    models: list[Model] = []
    for model in plan.models:
        parts = [
            replace(shard, index=index, eval_requests=(question,), id=content_id([shard.id, index]))
            for shard in plan.shards[model.id]
            for index, question in enumerate(shard.eval_requests, 1000 * shard.index)
        ]
        kept += parts[: shards - len(kept)]
        models.append(model)
        if len(kept) == shards:
            break
    part = plan.only(models)
    return replace(part, tasks=(*part.of_kind(CalibrationPart), *part.calibrations, *part.trainings, *kept))


def finish_all(plan: Plan, folder: RunFolder) -> None:
    """Records and outputs of everything, written without the flushing to disk that a run does."""
    sha256 = hashlib.sha256(OUTPUT).hexdigest()
    for part in plan.of_kind(CalibrationPart):
        finish(folder, part, [folder.output(part, ANSWERS)], sha256)
    for calibration in plan.calibrations:
        finish(folder, calibration, [folder.output(calibration, CALIBRATION)], sha256)
    for training in plan.trainings:
        finish(folder, training, [folder.delta(training.model)], sha256)
    for shard in plan.of_kind(Shard):
        finish(folder, shard, [folder.output(shard, VERDICTS), folder.output(shard, IMAGES)], sha256)


def finish(folder: RunFolder, task: Task, outputs: list[Path], sha256: str) -> None:
    outputs[0].parent.mkdir(parents=True, exist_ok=True)
    for path in outputs:
        path.write_bytes(OUTPUT)
    written = {path.name: Output(len(OUTPUT), sha256) for path in outputs}
    record = Record(task.id, task.kind, written, seconds=1.0, device="none", facts={"images": 1})
    folder.record_file(task).write_text(json.dumps(record.as_json(), indent=2))


if __name__ == "__main__":
    main()
