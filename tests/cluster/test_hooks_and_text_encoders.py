"""Models of a hook, and of an edited text encoder, are run and reported in a campaign like those of an edited UNet."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from efface.cluster.campaign.spec import Campaign
from efface.cluster.run import execute, open_run
from efface.eval.judging.image_table import read_table

MakeCampaign = Callable[..., Campaign]
METHODS = [
    {"method": "sld", "config": {"warm_up": 0, "threshold": 1.0}},
    {"method": "hirm", "config": {"steps": 2, "learning_rate": 1.0}},
]
STEPS = 2


def test_they_are_judged_and_their_costs_stand_on_the_leaderboard(campaign: MakeCampaign, tmp_path: Path) -> None:
    results = execute(open_run(campaign(methods=METHODS), tmp_path / "run"), 0, None, Console(file=io.StringIO()))
    rows = {row.method: row for row in results.rows}
    assert rows.keys() == {"base", "sld", "hirm"} and not results.failures and not results.unscored
    assert [rows[label].relative_l2 for label in ("base", "sld")] == [None, 0.0]
    assert rows["hirm"].relative_l2 and rows["hirm"].challenge_unet == 0.0
    passes = {label: row.passes_per_image for label, row in rows.items()}
    assert passes == {"base": 2 * STEPS, "sld": 3 * STEPS, "hirm": 2 * STEPS}
    assert all(row.seconds_per_image and row.seconds_per_image > 0 for row in rows.values())
    written = json.loads(results.folder.scores.read_text())["image_costs"]
    assert {label: cost["passes"] for label, cost in written.items()} == passes
    table = read_table(results.folder.table).to_pylist()
    images = {label: {row["image_sha256"] for row in table if row["method"] == label} for label in rows}
    assert images["sld"] != images["base"] != images["hirm"], "each acts on what is judged"


@pytest.mark.parametrize(("width", "shown"), [(120, True), (80, False)])
def test_the_table_shows_passes_where_they_differ_and_there_is_space(width: int, shown: bool) -> None:
    from efface.eval.scores.leaderboard import LeaderboardRow, rich_table

    def text(*passes: float) -> str:
        rows = [LeaderboardRow(f"m{n}", 1, *[0.5] * 9, passes_per_image=n) for n in passes]
        console = Console(file=io.StringIO(), width=width)
        console.print(rich_table(rows, width))
        return console.file.getvalue()  # type: ignore[attr-defined]

    assert ("ses" in text(40.0, 60.0)) == shown
    assert "ses" not in text(40.0, 40.0)
