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
    from efface.cluster.campaign.spec import DeltaEvaluation, Evaluation, Resources
    from efface.cluster.run import open_evaluation
    from efface.config_files import parse
    from efface.launch.campaigns import execute_and_show
    from efface.launch.device import resolve_device
    from efface.models.delta import Delta

    options = {"prompts": prompts, "recipe": recipe, "judges": judges, "images_per_prompt": images_per_prompt}
    evaluation = parse(Evaluation, options, "efface evaluate")
    resources = Resources(gpus=1 if resolve_device(device).startswith("cuda") else 0)
    wanted = DeltaEvaluation(base=base, concepts=concepts, evaluation=evaluation, resources=resources)
    deltas = [(path, Delta.load(path)) for path in paths]
    execute_and_show(open_evaluation(deltas, wanted, out), workers, None)


def score(table: str, method: str | None, judge: str | None, as_json: bool) -> None:
    """Every score, from the image table alone; a run folder means its table."""
    from efface.eval.image_table import read_table
    from efface.eval.scores.leaderboard import leaderboard, rich_table
    from efface.eval.scores.scoring import BASE, score_table
    from efface.files import as_path

    path = as_path(table)
    rows = read_table(path / "table.parquet" if (path / "table.parquet").is_file() else path)
    if as_json:
        print(json.dumps(score_table(rows, method=method, judge=judge), indent=2, ensure_ascii=False))
        return
    labels = [method] if method else sorted(set(rows["method"].unique().to_pylist()) - {BASE}) or [BASE]
    scores = {label: score_table(rows, method=label, judge=judge) for label in labels}
    console = Console(highlight=False, width=None if sys.stdout.isatty() else LOG_WIDTH)
    console.print(rich_table(leaderboard(scores), console.width))
