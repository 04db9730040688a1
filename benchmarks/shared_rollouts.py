"""What roll-outs that several steps share save, and do to ERR: ESD-x on the miniature, `steps_per_rollout` by turns.

`python -m benchmarks.shared_rollouts [--concepts cat bus] [--shared 1 2 4] [--json]`    (seven minutes of one core)

Each concept is forgotten by a model of its own, at the preset `miniature` and seed 0, one job after another in one
thread; seconds are the processor's, for whole jobs. Then each model is asked the demo's prompts by `miniature-fast`,
and scored beside the first: intervals are those of `efface score`. "speedup" is of the last over the first.
"""

import argparse
from functools import partial
from typing import Any

import pyarrow as pa
import torch

from benchmarks.on_device import show
from benchmarks.trainings import one_by_one, timed
from efface.concepts.concept import ConceptSet, load_concept_set
from efface.concepts.prompts import Axis, load_prompt_set
from efface.eval.judging.eval_requests import eval_requests
from efface.eval.judging.evaluate import evaluate
from efface.eval.judging.judge_spec import load_judge
from efface.eval.scores.comparison import differences
from efface.eval.scores.results import Scores
from efface.eval.scores.scoring import score_table
from efface.models.base import Base, load_base
from efface.models.delta import Delta
from efface.models.recipe import load_recipe
from efface.train.job import Job, make_job

PROMPTS: dict[Axis, int] = {"forget": 4, "indirect": 4, "adversarial": 4, "adjacent": 2, "retain": 1}
IMAGES_PER_PROMPT = 2


def jobs(base: Base, concepts: ConceptSet, names: list[str], shared: int) -> list[Job]:
    config = {"steps_per_rollout": shared}
    return [
        make_job("miniature", base.fingerprint, "esd", concepts, [name], config=config, preset="miniature")
        for name in names
    ]


def scored(base: Base, concepts: ConceptSet, jobs: list[Job], deltas: list[Delta], label: str) -> Scores:
    """The models of all jobs as one method."""
    recipe, judge, prompts = (
        load_recipe("miniature-fast"),
        load_judge("miniature"),
        load_prompt_set("miniature", concepts),
    )
    tables = []
    for job, delta in zip(jobs, deltas, strict=True):
        targets = [concepts.find(name) for name in job.concepts]
        asked = eval_requests(prompts, concepts, targets, range(IMAGES_PER_PROMPT), PROMPTS)
        base.swap(delta)
        table, _ = evaluate(base, recipe, asked, [judge], concepts, model_id=job.id, method=label)
        tables.append(table)
    base.swap(None)
    return score_table(pa.concat_tables(tables))


def measure(names: list[str], shared: list[int]) -> dict[str, Any]:
    torch.set_num_threads(1)
    base, concepts = load_base("miniature", "cpu"), load_concept_set("miniature")
    seconds, scores = dict[int, float](), dict[str, Scores]()
    for steps in shared:
        trained = jobs(base, concepts, names, steps)
        seconds[steps], deltas = timed(partial(one_by_one, trained, base, concepts), base.device)
        scores[str(steps)] = scored(base, concepts, trained, deltas, str(steps))
    first = str(shared[0])
    apart = differences(scores, first)
    rows = [
        {
            "steps_per_rollout": steps,
            "seconds_per_job": seconds[steps] / len(names),
            "speedup": seconds[shared[0]] / seconds[steps],
            "err_mean": scores[str(steps)].err_mean,
            "interval": list(scores[str(steps)].intervals.err_mean),
            "axes": scores[str(steps)].axes,
            "difference_to_first": None if str(steps) == first else apart[str(steps)].as_json(),
        }
        for steps in shared
    ]
    return {"speedup": rows[-1]["speedup"], "rows": rows, "concepts": names, "method": "esd", "preset": "miniature"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", nargs="+", default=["cat", "bus"])
    parser.add_argument("--shared", type=int, nargs="+", default=[1, 2, 4], help="steps that share a roll-out")
    parser.add_argument("--json", action="store_true", help="print one object and nothing else")
    args = parser.parse_args()
    measured = measure(args.concepts, args.shared)
    lines = [
        f"{row['steps_per_rollout']} steps to a roll-out: {row['seconds_per_job']:.1f} s a job, {row['speedup']:.2f} x "
        f"the speed; err_mean {row['err_mean']:.3f} ({row['interval'][0]:.3f} to {row['interval'][1]:.3f})"
        for row in measured["rows"]
    ]
    show("shared-rollouts", args, torch.device("cpu"), measured, lines)


if __name__ == "__main__":
    main()
