"""The figures of a report, as Plotly's JSON. Each comes with the numbers that it shows, as a table.

Colours of text and grid are set in the browser, for light and dark. A figure is drawn by the script in the file.
"""

from collections.abc import Sequence
from typing import Any

from efface.concepts.prompts import TARGET_AXES
from efface.eval.report.figure import Figure, make_plot
from efface.eval.report.heat_maps import changes_by_layer, heat_map, matrix
from efface.eval.report.reported_run import RunContent
from efface.eval.report.training_figures import changes_by_group, losses
from efface.eval.scores.continual import Stages
from efface.eval.scores.leaderboard import LeaderboardRow
from efface.eval.scores.scoring import BASE


def figures(run: RunContent) -> list[Figure]:
    """All figures for which the run has numbers."""
    found = [
        trade_off(
            run.rows,
            "change",
            "ERR against the change of the weights",
            "relative L2 change of all weights",
            lambda row: row.relative_l2,
        ),
        trade_off(
            run.rows, "seconds", "ERR against training time", "seconds of training, all models", lambda row: row.seconds
        ),
        *(heat_map(run, row.method, i) for i, row in enumerate(run.rows) if not is_base(row)),
        *(chain(label, report, i) for i, (label, report) in enumerate(run.stages.items())),
        matrix(run.transfers),
        changes_by_group(run.models),
        changes_by_layer(run.models),
        losses(run.models),
    ]
    return [figure for figure in found if figure and figure.rows]


def is_base(row: LeaderboardRow) -> bool:
    """Whether a line of the leaderboard is of the unedited base."""
    return row.method == BASE or row.method.startswith(f"{BASE} (")


def trade_off(rows: Sequence[LeaderboardRow], id: str, title: str, x_title: str, x: Any) -> Figure | None:
    """ERR of each method, with its interval, against something that it costs."""
    known = [(row.method, x(row), row.err_mean, row.low, row.high) for row in rows if x(row) is not None]
    if not known:
        return None
    names, xs, errs, lows, highs = zip(*known, strict=True)
    best = _pareto(list(zip(xs, errs, strict=True)))
    plot = make_plot(
        [
            {
                "type": "scatter",
                "mode": "markers+text",
                "x": xs,
                "y": errs,
                "text": names,
                "textposition": "middle right",
                "cliponaxis": False,
                "hovertemplate": "%{text}<br>ERR %{y:.3f}<br>%{x:.3g}<extra></extra>",
                "marker": {"size": 11, "symbol": ["circle" if b else "circle-open" for b in best]},
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [max(0.0, high - err) for err, high in zip(errs, highs, strict=True)],
                    "arrayminus": [max(0.0, err - low) for err, low in zip(errs, lows, strict=True)],
                    "thickness": 1,
                },
            }
        ],
        {"title": {"text": x_title}, "range": [-0.03 * max(xs), 1.25 * max(xs)] if max(xs) > 0 else [-1, 1]},
        {"title": {"text": "ERR (mean over concepts)"}, "range": [-0.03, 1.08]},
    )
    shown = tuple(
        (n, v, e, f"{lo:.3f}-{hi:.3f}", "yes" if b else "no") for (n, v, e, lo, hi), b in zip(known, best, strict=True)
    )
    description = f"ERR of {len(known)} methods against {x_title}; full circles are those that no other beats in both."
    return Figure(
        id, title, description, plot, ("method", x_title, "ERR", "95 % interval", "not beaten in both"), shown
    )


def chain(label: str, report: Stages, number: int) -> Figure:
    """Retention, and what came back, after each request of a chain."""
    stages = report.stages
    requests = [f"{stage.stage}. {stage.request}" for stage in stages]
    came_back = {axis: [(stage.relapse.mean or {}).get(axis) for stage in stages] for axis in TARGET_AXES}
    lines = {
        "ERR": [stage.err_mean for stage in stages],
        "retention": [stage.retention for stage in stages],
        **{f"relapse ({axis})": values for axis, values in came_back.items()},
    }
    plot = make_plot(
        [
            {"type": "scatter", "mode": "lines+markers", "name": name, "x": requests, "y": values}
            for name, values in lines.items()
        ],
        {"title": {"text": "request"}, "type": "category", "automargin": True},
        {"title": {"text": "score, or growth of presence"}},
    )
    rows = tuple(zip(requests, *lines.values(), strict=True))
    return Figure(
        f"chain-{number}",
        f"{label}: request by request",
        f"Lines over {len(stages)} requests: ERR and retention (higher is better), and how far concepts that were "
        "forgotten before came back (0 is best).",
        plot,
        ("request", *lines),
        rows,
    )


def _pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Whether no other point has a lower or equal cost and a higher or equal ERR, one of them strictly."""
    return [not any(x <= cost and y >= err and (x, y) != (cost, err) for x, y in points) for cost, err in points]
