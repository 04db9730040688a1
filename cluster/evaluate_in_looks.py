"""An evaluation that draws images look by look, and none any more for axes that are settled.

All looks are one run in one folder: each adds shards to the plan of the one before. The same command goes on where it
was stopped, since what a look says is a function of the verdicts that are there.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from efface.cluster.campaign.planner import plan_deltas
from efface.cluster.campaign.sharding import Look
from efface.cluster.campaign.spec import DeltaEvaluation
from efface.cluster.run import Run, open_evaluation
from efface.cluster.run_provenance import until_of
from efface.cluster.run_results import Results
from efface.cluster.stored_plan import SEQUENTIAL, is_campaign, stored_deltas
from efface.concepts.prompts import AXES, Axis
from efface.config_files import read_config
from efface.eval.judging.image_table import read_table
from efface.eval.judging.judge_spec import judge_name
from efface.eval.scores.sequential import LookAnswer, Question, answers, look_level, look_sizes, read_question, settled
from efface.files import write_json
from efface.models.delta import Delta


def evaluate_in_looks(
    deltas: Sequence[tuple[Path, Delta]],
    config: DeltaEvaluation,
    question: Question,
    out: Path | None,
    execute: Callable[[Run], Results],
) -> Results:
    """Judge the deltas until every axis of the question is settled or all its images are drawn.

    An axis that is not in the question is drawn to the end. Writes `sequential.json` beside the results. Raises as
    `open_evaluation` and `execute` do, and UserError for a comparison of more or fewer than two methods.
    """
    most = config.evaluation.images_per_prompt
    return _look_by_look(lambda looks: open_evaluation(deltas, config, out, looks), most, question, execute)


def resume(run: Run, execute: Callable[[Run], Results]) -> Results:
    """Do what is missing of a run that `reopen_run` gave, and draw further looks where it is an evaluation in looks.

    Raises as `execute` does.
    """
    question = {} if is_campaign(run.folder) else read_question(until_of(run.folder))
    if not question:
        return execute(run)
    config, deltas = read_config(DeltaEvaluation, run.folder.evaluation), stored_deltas(run.folder)
    most = config.evaluation.images_per_prompt
    return _look_by_look(lambda looks: replace(run, plan=plan_deltas(deltas, config, looks)), most, question, execute)


def _look_by_look(
    open_looks: Callable[[Sequence[Look]], Run], most: int, question: Question, execute: Callable[[Run], Results]
) -> Results:
    """open_looks: gives the run that draws these looks; most: images of each prompt, after the last look."""
    sizes = look_sizes(most)
    looks: list[Look] = []
    done: frozenset[Axis] = frozenset()
    drawn: dict[Axis, int] = {}
    found: dict[Axis, dict[str, LookAnswer]] = {}
    for before, size in zip((0, *sizes), sizes, strict=False):
        if done.issuperset(AXES):
            break
        looks.append(Look(range(before, size), done))
        run = open_looks(looks)
        drawn |= {axis: size for axis in AXES if axis not in done}
        # Before any image is drawn: who reads the folder meanwhile has to know which are to come.
        write_json(run.folder.root / SEQUENTIAL, _as_json(question, sizes, drawn, found))
        results = execute(run)
        if results.failures:
            return results
        table = read_table(run.folder.table)
        rows = table.filter(pc.equal(table["judge"], judge_name(run.plan.calibrations[0].judge)))
        found |= answers(rows, {axis: question[axis] for axis in question if axis not in done}, look_level(len(sizes)))
        done = settled(found)
        write_json(run.folder.root / SEQUENTIAL, _as_json(question, sizes, drawn, found))
    return results


def _as_json(
    question: Question, sizes: Sequence[int], drawn: dict[Axis, int], found: dict[Axis, dict[str, LookAnswer]]
) -> dict[str, Any]:
    return {
        "question": dict(question),
        "looks": list(sizes),
        "level": look_level(len(sizes)),
        "images_per_prompt": drawn,
        "answers": {axis: {name: answer.as_json() for name, answer in by.items()} for axis, by in found.items()},
    }
