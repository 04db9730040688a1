"""`efface calibrate`: by how much a recipe shifts every axis, on the same models, prompts and seeds."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efface.errors import JobFailure, UserError
from efface.launch.arguments.options import (
    LOCAL,
    BaseOption,
    ConceptsOption,
    DeviceOption,
    PromptsOption,
    WorkersOption,
)
from efface.launch.command import Command

if TYPE_CHECKING:
    from efface.cluster.run_results import Results
    from efface.eval.scores.recipe_shifts import RecipeShift


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """State by how much a recipe shifts each axis against another: the same models, prompts and seeds, in pairs."""

    recipe: Annotated[str, typer.Argument(help="The recipe to calibrate, by name or file.")]
    deltas: Annotated[
        list[Path], typer.Argument(help="Delta files of edited models to judge by both, beside the base.", **LOCAL)
    ]
    against: Annotated[str | None, typer.Option(help="The recipe to compare with; default: the base's own.")] = None
    base: BaseOption = "miniature"
    concepts: ConceptsOption = None
    prompts: PromptsOption = None
    judge: Annotated[
        list[str], typer.Option(help="A judge of `efface judges`; default: the base's own. The first one counts.")
    ] = field(default_factory=list)
    images_per_prompt: Annotated[int, typer.Option(min=1, help="Images of each prompt.")] = 4
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of both runs; default: runs/calibration-RECIPE.", **LOCAL),
    ] = None
    workers: WorkersOption = None
    device: DeviceOption = "auto"


@dataclass(frozen=True)
class Calibrated:
    """What a recipe shifts."""

    recipe: str
    against: str
    file: Path
    shifts: "dict[str, RecipeShift]"
    """By label, the base's as "base"."""
    costs: dict[str, dict[str, dict[str, float | None]]]
    """By label and recipe the passes of the UNet and the seconds that an image takes, where known."""


def run(options: CalibrateOptions) -> Calibrated:
    """Judge the models by both recipes. Raises UserError, JobFailure where a model cannot be judged, and Stopped."""
    from efface.eval.judging.image_table import read_table
    from efface.eval.scores.recipe_shifts import recipe_shifts
    from efface.files import write_json
    from efface.models.base import read_base
    from efface.models.recipe import load_recipe

    names = [options.against or read_base(options.base).recipe, options.recipe]
    recipes = [load_recipe(name) for name in names]
    if recipes[0].id == recipes[1].id:
        raise UserError(f"recipe '{options.recipe}' is the one to compare with; name another, or --against")
    out = options.out or Path("runs") / f"calibration-{recipes[1].name}"
    runs = [_judge(options, name, out / recipe.id) for name, recipe in zip(names, recipes, strict=True)]
    tables = [read_table(results.folder.table) for results in runs]
    shifts = recipe_shifts(*(_of_first_judge(table) for table in tables))
    costs: dict[str, dict[str, dict[str, float | None]]] = {label: {} for label in shifts}
    for recipe, results in zip(recipes, runs, strict=True):
        for row in results.rows:
            if row.method in costs:
                costs[row.method][recipe.name] = {"passes": row.passes_per_image, "seconds": row.seconds_per_image}
    found = Calibrated(recipes[1].name, recipes[0].name, out / "calibration.json", shifts, costs)
    write_json(found.file, as_json(found))
    return found


def _judge(options: CalibrateOptions, recipe: str, out: Path) -> "Results":
    from efface.launch.commands import evaluate

    requested = evaluate.EvaluateOptions(
        deltas=[str(delta) for delta in options.deltas],
        base=options.base,
        concepts=options.concepts,
        prompts=options.prompts,
        recipe=recipe,
        judge=options.judge,
        images_per_prompt=options.images_per_prompt,
        out=out,
        workers=options.workers,
        device=options.device,
    )
    results = evaluate.run(requested)
    if results.failures:
        raise JobFailure(f"with recipe '{recipe}': {results.failures[0]}")
    return results


def _of_first_judge(table: Any) -> Any:
    import pyarrow.compute as pc

    return table.filter(pc.equal(table["judge"], table["judge"][0]))


def show(found: Calibrated) -> None:
    from efface.eval.scores.recipe_shifts import judged
    from efface.launch.terminal.tables import print_line, print_table

    rows = []
    for label, shift in found.shifts.items():
        scored = [
            (axis, shift.reference.axes[axis], shift.other.axes[axis], paired)
            for axis, paired in shift.difference.axes.items()
        ]
        total = ("err_mean", shift.reference.err_mean, shift.other.err_mean, shift.difference.err_mean)
        for name, before, after, paired in [*scored, total]:
            interval = f"{paired.difference:+.3f} ({paired.low:+.3f} to {paired.high:+.3f})"
            rows.append([label, name, f"{before:.3f}", f"{after:.3f}", interval])
    print_table(["method", "score", found.against, found.recipe, "shift, 95 % interval"], rows)
    for label, shift in found.shifts.items():
        print_line(f"{label}: {judged(shift)}")
    for label, by_recipe in found.costs.items():
        for recipe, cost in by_recipe.items():
            if cost["seconds"] is not None and cost["passes"] is not None:
                print_line(f"{label}, {recipe}: an image takes {cost['seconds']:.3g} s, {cost['passes']:.4g} passes")
    print_line(str(found.file))


def as_json(found: Calibrated) -> dict[str, Any]:
    from efface.eval.scores.recipe_shifts import judged

    return {
        "recipe": found.recipe,
        "against": found.against,
        "methods": {label: {**shift.as_json(), "verdict": judged(shift)} for label, shift in found.shifts.items()},
        "image_cost": found.costs,
    }


COMMAND = Command("calibrate", CalibrateOptions, run, show, as_json=as_json)
