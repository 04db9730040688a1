"""The figures of a report, as Plotly's JSON. Each comes with the numbers that it shows, as a table.

Colours of text and grid are set in the browser, for light and dark. A figure is drawn by the script in the file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from efface.concepts.prompts import TARGET_AXES
from efface.eval.report.content import ReportedModel, RunContent
from efface.eval.report.queries import interference
from efface.eval.scores.continual import Stages
from efface.eval.scores.leaderboard import LeaderboardRow
from efface.eval.scores.scoring import BASE

Json = dict[str, Any]
Cell = str | float | int | None

MAX_POINTS = 200
"""Of a training curve; longer ones show means of equal stretches."""


@dataclass(frozen=True)
class Figure:
    """A plot, and what it shows in words and numbers."""

    id: str
    title: str
    description: str
    """For those who do not see it."""
    plot: Json
    """`data` and `layout` of Plotly."""
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


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
        changes_by_group(run.models),
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
    plot = _plot(
        [
            {
                "type": "scatter",
                "mode": "markers+text",
                "x": xs,
                "y": errs,
                "text": names,
                "textposition": "top center",
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
        {"title": {"text": x_title}, "rangemode": "tozero"},
        {"title": {"text": "ERR (mean over concepts)"}, "range": [-0.03, 1.08]},
    )
    shown = tuple(
        (n, v, e, f"{lo:.3f}-{hi:.3f}", "yes" if b else "no") for (n, v, e, lo, hi), b in zip(known, best, strict=True)
    )
    description = f"ERR of {len(known)} methods against {x_title}; full circles are those that no other beats in both."
    return Figure(
        id, title, description, plot, ("method", x_title, "ERR", "95 % interval", "not beaten in both"), shown
    )


def heat_map(run: RunContent, method: str, number: int) -> Figure | None:
    """What forgetting each concept did to every concept that was asked for."""
    changes = interference(run.table, run.judge, method)
    if not changes:
        return None
    erased = sorted({pair[0] for pair in changes})
    asked = [*erased, *sorted({pair[1] for pair in changes} - set(erased))]
    values = [[changes.get((target, other)) for other in asked] for target in erased]
    plot = _plot(
        [
            {
                "type": "heatmap",
                "x": asked,
                "y": erased,
                "z": values,
                "zmin": -1,
                "zmax": 1,
                "colorscale": [[0, "#2166ac"], [0.5, "#f7f7f7"], [1, "#b2182b"]],
                "xgap": 1,
                "ygap": 1,
                "hovertemplate": "forgotten %{y}<br>asked %{x}<br>%{z:+.2f}<extra></extra>",
                "colorbar": {"title": {"text": "change"}, "thickness": 12},
            }
        ],
        {"title": {"text": "asked concept"}, "type": "category", "tickangle": -40, "automargin": True},
        {"title": {"text": "forgotten concept"}, "type": "category", "autorange": "reversed", "automargin": True},
    )
    plot["layout"]["height"] = 220 + 26 * len(erased)
    rows = tuple((target, other, change) for (target, other), change in changes.items())
    return Figure(
        f"interference-{number}",
        f"{method}: what forgetting one concept did to the others",
        f"Heat map for {method}: change of the share of images that show the asked concept, from the base to the "
        "edited model. Blue: it is seen less. A forgotten concept should be blue in its own column, white elsewhere.",
        plot,
        ("forgotten", "asked", "change of presence"),
        rows,
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
    plot = _plot(
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


def changes_by_group(models: Sequence[ReportedModel]) -> Figure | None:
    """Where each method changed the weights."""
    labels = list(dict.fromkeys(model.label for model in models))
    groups = list(dict.fromkeys(group for model in models for group in model.changes))
    means = {
        label: [_mean([model.changes.get(group, 0.0) for model in models if model.label == label]) for group in groups]
        for label in labels
    }
    plot = _plot(
        [{"type": "bar", "name": label, "x": groups, "y": values} for label, values in means.items()],
        {"title": {"text": "group of weights (groups overlap)"}, "type": "category", "automargin": True},
        {"title": {"text": "relative L2 change"}, "type": "log", "exponentformat": "power"},
    )
    rows = tuple(
        (label, group, value) for label, values in means.items() for group, value in zip(groups, values, strict=True)
    )
    return Figure(
        "groups",
        "Where the weights changed",
        "Bars: relative L2 change of each group of weights, mean over a method's models, on a logarithmic scale.",
        plot,
        ("method", "group", "relative L2 change"),
        rows,
    )


def losses(models: Sequence[ReportedModel]) -> Figure | None:
    """The loss of each training, step by step."""
    trained = [model for model in models if model.losses]
    lines = [(f"{model.label}: {', '.join(model.concepts)}", *_thinned(model.losses)) for model in trained]
    plot = _plot(
        [
            {"type": "scatter", "mode": "lines", "name": name, "x": steps, "y": values, "line": {"width": 1}}
            for name, steps, values in lines
        ],
        {"title": {"text": "optimiser step"}},
        {"title": {"text": "loss"}, "type": "log", "exponentformat": "power"},
    )
    rows = tuple(
        (name, len(model.losses), model.losses[0], model.losses[-1])
        for (name, *_), model in zip(lines, trained, strict=True)
    )
    return Figure(
        "losses",
        "Training curves",
        f"Loss of {len(lines)} trainings over their steps, on a logarithmic scale; losses of different methods are not "
        "comparable.",
        plot,
        ("training", "steps", "first loss", "last loss"),
        rows,
    )


def _plot(data: list[Json], xaxis: Json, yaxis: Json) -> Json:
    layout = {"xaxis": xaxis, "yaxis": yaxis, "margin": {"l": 60, "r": 20, "t": 20, "b": 60}, "height": 380}
    return {"data": data, "layout": {**layout, "hovermode": "closest"}}


def _pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Whether no other point has a lower or equal cost and a higher or equal ERR, one of them strictly."""
    return [not any(x <= cost and y >= err and (x, y) != (cost, err) for x, y in points) for cost, err in points]


def _thinned(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Steps and values, of which there are `MAX_POINTS` at most: means of equal stretches."""
    width = -(-len(values) // MAX_POINTS)
    stretches = [values[start : start + width] for start in range(0, len(values), width)]
    steps = [
        1 + start + (len(part) - 1) / 2 for start, part in zip(range(0, len(values), width), stretches, strict=True)
    ]
    return steps, [_mean(part) for part in stretches]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
