"""`efface evaluate`: judge deltas, and the base beside them, in a run folder like a campaign's."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from efface.launch.command import Command
from efface.launch.execution import execute_run, failure_code, show_results
from efface.launch.options import LOCAL, BaseOption, ConceptsOption, DeviceOption, PromptsOption, WorkersOption

if TYPE_CHECKING:
    from efface.cluster.report import Results


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Make images with edited models and the base, judge them, and write table, scores and contact sheets."""

    deltas: Annotated[list[Path], typer.Argument(help="Delta files of one method.", **LOCAL)]
    base: BaseOption = "miniature"
    concepts: ConceptsOption = None
    prompts: PromptsOption = None
    recipe: Annotated[str | None, typer.Option(help="How images are made; default: the base's own.")] = None
    judge: Annotated[
        list[str],
        typer.Option(help="A judge of `efface judges`; repeatable; default: the base's own."),
    ] = field(default_factory=list)
    images_per_prompt: Annotated[int, typer.Option(min=1, help="Images of each prompt.")] = 4
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The run folder to write; default: runs/evaluation-ID.", **LOCAL)
    ] = None
    workers: WorkersOption = None
    device: DeviceOption = "auto"


def run(options: EvaluateOptions) -> "Results":
    """Judge the deltas; what it came to. Raises UserError, and Stopped."""
    from efface.cluster.campaign.spec import DeltaEvaluation, Evaluation, Resources
    from efface.cluster.run import open_evaluation
    from efface.config_files import parse
    from efface.launch.device import resolve_device
    from efface.models.delta import Delta

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
    deltas = [(path, Delta.load(path)) for path in options.deltas]
    return execute_run(open_evaluation(deltas, requested, options.out), options.workers, None)


COMMAND = Command("evaluate", EvaluateOptions, run, show_results, exit_code=failure_code)
