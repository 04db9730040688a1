"""Model cards: what the hub shows of a model, in words, as a table of ERR, and as `model-index` for programs."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.compute as pc

from efface.concepts.prompts import AXES
from efface.eval.attacking.attack_table import AttackRow, attack_rows
from efface.eval.report.reported_run import RunContent
from efface.eval.report.write import markdown_text
from efface.eval.scores.results import Scores
from efface.eval.scores.scoring import BASE, score_table
from efface.models.base import BaseSpec
from efface.models.files.hub import NAME

TEMPLATES = Path(__file__).parent / "templates"
TASK = "text-to-image"
LICENCE_ID = re.compile(r"[a-z0-9]+([.-][a-z0-9]+)*")
"""How the hub writes the licences that it knows: `creativeml-openrail-m`, `apache-2.0`."""


@dataclass(frozen=True)
class Judgement:
    """What a run says of a model: of one delta, or of all models of a method."""

    scores: Scores
    judge: str
    images: int
    """Of the model, without those of the base."""
    attacks: tuple[AttackRow, ...]
    problems: tuple[str, ...]
    """What should be known before the scores are believed."""


def judgement(content: RunContent, label: str, model_ids: Sequence[str]) -> Judgement | None:
    """What the run has found out about these models of one method, by the headline's judge; None where it did not
    judge them."""
    of_judge = content.table.filter(pc.equal(content.table["judge"], content.judge))
    of_models = of_judge.filter(pc.is_in(of_judge["model_id"], value_set=pa.array(model_ids, pa.string())))
    of_models = of_models.filter(pc.equal(of_models["method"], label))
    if not of_models.num_rows:
        return None
    concepts = of_models["concept"].unique()
    of_base = of_judge.filter(
        pc.and_(pc.equal(of_judge["method"], BASE), pc.is_in(of_judge["concept"], value_set=concepts))
    )
    attacks = [result for result in content.attacks if result.model in model_ids and result.method == label]
    return Judgement(
        scores=score_table(pa.concat_tables([of_models, of_base]), method=label),
        judge=content.judge,
        images=len(of_models["image_sha256"].unique()),
        attacks=tuple(attack_rows(attacks)),
        problems=content.problems,
    )


def front_matter(
    name: str, base: BaseSpec | None, method: str, judged: Judgement | None, *, licence: str = "", is_whole: bool = True
) -> str:
    """The metadata of a card, with the lines of hyphens around it.

    name: of the model. base: unless it is not known here. licence: in the metadata where it is one of the hub's own
    words. is_whole: the repository has a diffusers folder, and not a delta alone.
    """
    from huggingface_hub import ModelCardData

    words = licence if LICENCE_ID.fullmatch(licence) else None
    data = ModelCardData(
        model_name=name,
        base_model=base.source if base and re.fullmatch(f"{NAME}/{NAME}", base.source) else None,
        license=words or ("other" if licence else None),
        library_name="diffusers" if is_whole else None,
        pipeline_tag=TASK if is_whole else None,
        tags=["efface", "machine-unlearning", "concept-erasure", method],
        eval_results=list(eval_results(judged)) if judged else None,
    )
    if not judged:
        data.pop("model_name")
    return f"---\n{data.to_yaml()}\n---\n"


def eval_results(judged: Judgement) -> Iterator[Any]:
    """ERR and the five accuracies of each concept, each with its 95 % interval in its name."""
    from huggingface_hub import EvalResult

    intervals = judged.scores.intervals.concepts
    for concept, values in judged.scores.concepts.items():
        for axis in ("err", *AXES):
            low, high = intervals[concept][axis]
            name = "ERR" if axis == "err" else f"{axis} accuracy"
            yield EvalResult(
                task_type=TASK,
                dataset_type="efface-prompts",
                dataset_name=f"prompts for {concept}",
                dataset_config=concept,
                metric_type="err" if axis == "err" else "accuracy",
                metric_name=f"{name} (95 % interval {low:.3f} to {high:.3f})",
                metric_config=axis,
                metric_value=round(values[axis], 6),
                metric_args={"judge": judged.judge},
            )


def templates() -> jinja2.Environment:
    """The engine of the texts of a package and of a card: texts of others stay text by the filter `md`."""
    engine = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    engine.filters |= {"md": lambda value: markdown_text(str(value)), "score": lambda value: f"{value:.3f}"}
    engine.filters["rate"] = lambda value: "" if value is None else f"{value:.2f}"
    engine.globals["axes"] = AXES
    return engine
