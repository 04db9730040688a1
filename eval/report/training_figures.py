"""Figures of a report about training: where weights changed, and how losses fell."""

from collections.abc import Sequence

from efface.eval.report.figure import Figure, make_plot
from efface.eval.report.reported_run import ReportedModel
from efface.models.parameter_groups import MEANING

MAX_POINTS = 200
"""Of a training curve; longer ones show means of equal stretches."""


def changes_by_group(models: Sequence[ReportedModel]) -> Figure | None:
    """Where each method changed the weights."""
    labels = list(dict.fromkeys(model.label for model in models))
    groups = list(dict.fromkeys(group for model in models for group in model.changes))
    means = {
        label: [_mean([model.changes.get(group, 0.0) for model in models if model.label == label]) for group in groups]
        for label in labels
    }
    plot = make_plot(
        [{"type": "bar", "name": label, "x": groups, "y": values} for label, values in means.items()],
        {"title": {"text": "group of weights (groups overlap)"}, "type": "category", "automargin": True},
        {"title": {"text": "relative L2 change (logarithmic)"}, "type": "log", "exponentformat": "power"},
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
        note="Each bar of a group is the change of all its weights. "
        + "; ".join(f"{group}: {MEANING[group]}" for group in groups if group in MEANING)
        + ".",
    )


def losses(models: Sequence[ReportedModel]) -> Figure | None:
    """The loss of each training, step by step."""
    trained = [model for model in models if model.losses]
    lines = [(f"{model.label}: {', '.join(model.concepts)}", *_thinned(model.losses)) for model in trained]
    plot = make_plot(
        [
            {"type": "scatter", "mode": "lines", "name": name, "x": steps, "y": values, "line": {"width": 1}}
            for name, steps, values in lines
        ],
        {"title": {"text": "optimiser step"}},
        {"title": {"text": "loss (logarithmic)"}, "type": "log", "exponentformat": "power"},
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
