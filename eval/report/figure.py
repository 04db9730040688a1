"""What a figure is: a plot for those who see it, a sentence and a table for everybody, and for copying numbers."""

from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
Cell = str | float | int | None


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
    note: str = ""
    """What its words mean, for everybody."""


def make_plot(data: list[Json], xaxis: Json, yaxis: Json) -> Json:
    layout = {"xaxis": xaxis, "yaxis": yaxis, "margin": {"l": 60, "r": 20, "t": 20, "b": 60}, "height": 380}
    return {"data": data, "layout": {**layout, "hovermode": "closest"}}
