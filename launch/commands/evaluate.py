"""`efface evaluate`: judge deltas, and the base beside them, in a run folder like a campaign's."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from efface.errors import UserError
from efface.files import local_path
from efface.launch.arguments.options import (
    DELTA,
    LOCAL,
    BaseOption,
    ConceptsOption,
    DeviceOption,
    PromptsOption,
    WorkersOption,
)
from efface.launch.command import Command
from efface.launch.execution import execute_run, failure_code, show_results

if TYPE_CHECKING:
    from efface.cluster.run_results import Results
    from efface.models.delta import Delta


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Make images with edited models and the base, judge them, and write table, scores and contact sheets."""

    deltas: Annotated[
        list[str],
        typer.Argument(
            help="Deltas of one method, as files or hub ids; with --concept, models that somebody else edited: "
            "diffusers folders, checkpoints, UNet state dicts, LoRAs.",
            **DELTA,
        ),
    ]
    concept: Annotated[
        list[str],
        typer.Option("--concept", "-c", help="What somebody else's model should have forgotten; repeatable."),
    ] = field(default_factory=list)
    label: Annotated[str, typer.Option(help="The name in tables of the method of somebody else's model.")] = "foreign"
    base: BaseOption = "miniature"
    concepts: ConceptsOption = None
    prompts: PromptsOption = None
    recipe: Annotated[str | None, typer.Option(help="How images are made; default: the base's own.")] = None
    judge: Annotated[
        list[str],
        typer.Option(help="A judge of `efface judges`; repeatable; default: the base's own."),
    ] = field(default_factory=list)
    images_per_prompt: Annotated[int, typer.Option(min=1, help="Images of each prompt.")] = 4
    until: Annotated[
        list[str],
        typer.Option(
            help="AXIS=THRESHOLD, or AXIS alone with two methods: stop drawing images for the axis once its interval "
            "leaves the threshold out, or says which method is higher; repeatable. At most --images-per-prompt."
        ),
    ] = field(default_factory=list)
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The run folder to write; default: runs/evaluation-ID.", **LOCAL)
    ] = None
    workers: WorkersOption = None
    device: DeviceOption = "auto"


def run(options: EvaluateOptions) -> "Results":
    """Judge the deltas; what it came to. Raises UserError, and Stopped."""
    from efface.cluster.campaign.spec import DeltaEvaluation, Evaluation, Resources
    from efface.cluster.evaluate_in_looks import evaluate_in_looks
    from efface.cluster.run import open_evaluation
    from efface.config_files import parse
    from efface.eval.scores.sequential import read_question
    from efface.launch.arguments.device import resolve_device

    evaluation = parse(
        Evaluation,
        {
            "prompts": options.prompts,
            "recipe": options.recipe,
            "judges": options.judge,
            "images_per_prompt": options.images_per_prompt,
        },
        "efface evaluate",
    )
    requested = DeltaEvaluation(
        base=options.base,
        concepts=options.concepts,
        evaluation=evaluation,
        resources=Resources(gpus=1 if resolve_device(options.device).startswith("cuda") else 0),
    )
    question = read_question(options.until)
    deltas = _foreign(options) if options.concept else [_own(delta) for delta in options.deltas]
    if question:
        execute = partial(execute_run, workers=options.workers, address=None)
        return evaluate_in_looks(deltas, requested, question, options.out, execute)
    return execute_run(open_evaluation(deltas, requested, options.out), options.workers, None)


def _own(source: str) -> "tuple[Path, Delta]":
    from efface.models.delta import Delta
    from efface.models.files.hub import find_delta

    path = find_delta(source)
    try:
        return path, Delta.load(path)
    except UserError as error:
        if path.suffix == ".safetensors" and not path.exists():
            raise  # and is hardly a model of somebody else's
        hint = "a model that somebody else edited is judged with --concept, which says what it should have forgotten"
        raise UserError(f"{error}; {hint}") from None


def _foreign(options: EvaluateOptions) -> "list[tuple[Path, Delta]]":
    from efface.concepts.concept import load_concept_set
    from efface.models.base import load_base, read_base
    from efface.train.foreign_delta import foreign_delta

    named = options.concepts or read_base(options.base).concepts
    if not named:
        raise UserError(f"base '{options.base}' names no concept set, so --concepts must be given")
    concept_set, base = load_concept_set(named), load_base(options.base)
    paths = [local_path(given) for given in options.deltas]
    return [(path, foreign_delta(path, base, concept_set, options.concept, options.label)) for path in paths]


COMMAND = Command("evaluate", EvaluateOptions, run, show_results, exit_code=failure_code)
