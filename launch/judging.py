"""`efface evaluate` and `efface score`."""

import json
import sys
from pathlib import Path

from rich.console import Console

from efface.launch.campaigns import LOG_WIDTH


def evaluate(
    paths: list[Path],
    base: str,
    concepts: str | None,
    prompts: str | None,
    recipe: str | None,
    judges: list[str],
    images_per_prompt: int,
    out: Path | None,
    workers: int | None,
    device: str,
) -> None:
    """Judge deltas, and the base beside them, in a run folder like a campaign's."""
    from efface.cluster.campaign import DeltaEvaluation, Evaluation, Resources
    from efface.cluster.run import open_evaluation
    from efface.launch.campaigns import carry_out_and_show
    from efface.launch.device import pick
    from efface.models.delta import Delta
    from efface.strict import parse

    asked = {"prompts": prompts, "recipe": recipe, "judges": judges, "images_per_prompt": images_per_prompt}
    evaluation = parse(Evaluation, asked, "efface evaluate")
    resources = Resources(gpus=1 if pick(device).startswith("cuda") else 0)
    wanted = DeltaEvaluation(base=base, concepts=concepts, evaluation=evaluation, resources=resources)
    deltas = [(path, Delta.load(path)) for path in paths]
    carry_out_and_show(open_evaluation(deltas, wanted, out), workers, None)


def score(table: str, method: str | None, judge: str | None, as_json: bool) -> None:
    """Every score, from the image table alone; a run folder means its table."""
    from efface.eval.leaderboard import leaderboard, rich_table
    from efface.eval.score import BASE, score_table
    from efface.eval.table import read_table
    from efface.files import as_path

    place = as_path(table)
    rows = read_table(place / "table.parquet" if (place / "table.parquet").is_file() else place)
    if as_json:
        print(json.dumps(score_table(rows, method=method, judge=judge), indent=2, ensure_ascii=False))
        return
    labels = [method] if method else sorted(set(rows["method"].unique().to_pylist()) - {BASE}) or [BASE]
    scores = {label: score_table(rows, method=label, judge=judge) for label in labels}
    console = Console(highlight=False, width=None if sys.stdout.isatty() else LOG_WIDTH)
    console.print(rich_table(leaderboard(scores), console.width))
