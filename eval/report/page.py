"""The HTML file: everything is inside (script, style, thumbnails), nothing is fetched, and texts of others stay text.

Tables are written out, so that they can be read and printed without a script; figures and strips are drawn by one.
"""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from efface.concepts.prompts import AXES, KEPT_AXES
from efface.eval.attacking.attack_table import AttackRow, attack_rows
from efface.eval.calibration.calibration import Calibration
from efface.eval.calibration.judge_accuracy import Accuracy, together
from efface.eval.published_scores import CAUTION
from efface.eval.report.corrected import CAUTION as CORRECTED_CAUTION
from efface.eval.report.corrected import corrected_lines
from efface.eval.report.figure import Figure
from efface.eval.report.figures import figures, is_base
from efface.eval.report.queries import Disagreement, disagreements
from efface.eval.report.reported_run import ReportedModel, RunContent
from efface.eval.report.strips import make_strips
from efface.eval.report.thumbnails import COLUMNS, ROWS, make_sprites
from efface.eval.scores.leaderboard import LeaderboardRow, shows_some
from efface.text import shown

TEMPLATES = Path(__file__).parent / "templates"
MAX_THUMBNAIL_BYTES = 12 * 2**20
"""Of all runs of a report; in base64 a third more."""


@dataclass(frozen=True)
class Section:
    """One run on the page."""

    number: int
    run: RunContent
    figures: list[Figure]
    disagreements: list[Disagreement]
    attacks: list[AttackRow]
    data: dict[str, Any]
    """What the script needs of it at once."""
    sprites: list[str]
    """WebP in base64, each read when an image of it is shown."""
    left_out: int
    """Images without a thumbnail for want of space."""
    missing: int
    """Images that are gone or damaged."""
    concept_rows: list["ConceptRow"]
    methods: list["MethodPart"]
    """In the order of the leaderboard."""

    @property
    def places(self) -> dict[str, int]:
        """The number of each method."""
        return {method.row.method: i for i, method in enumerate(self.methods)}


class ConceptRow(NamedTuple):
    """What one method did to one concept."""

    concept: str
    method: str
    scores: Mapping[str, float]
    """Of each axis, and `err`."""
    interval: tuple[float, float]


class MethodPart(NamedTuple):
    """All there is of one method."""

    row: LeaderboardRow
    models: list[ReportedModel]
    concepts: list[ConceptRow]
    """The worst first."""


def report_html(
    runs: Sequence[RunContent],
    title: str,
    version: str = "",
    live_version: str | None = None,
    images: str | None = None,
    tables: str | None = None,
) -> str:
    """The whole file.

    images: the folder beside the file in which every image is, see `strips.image_file`; tables: the file beside it that
    has every number as CSV; None: there is none.

    version: of what it shows, for `is_report_of`. live_version: of a page that is served while the runs go on; it loads
    itself anew when the server's `status.json` names another one, and shows what that says meanwhile.
    """
    sections = [_section(number, run, MAX_THUMBNAIL_BYTES // len(runs), images) for number, run in enumerate(runs)]
    engine = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    engine.filters |= {
        "score": _score,
        "interval": _interval,
        "number": _number,
        "shown": lambda value: shown(str(value)),
    }
    return engine.get_template("report.html.j2").render(
        title=title,
        sections=sections,
        axes=AXES,
        is_base=is_base,
        balanced=_balanced,
        together=together,
        corrected_lines=corrected_lines,
        corrected_caution=CORRECTED_CAUTION,
        kept_axes=KEPT_AXES,
        shows_some=shows_some,
        published_caution=CAUTION,
        version=version,
        live_version=live_version,
        tables=tables,
        data=_script_json([section.data for section in sections]),
        style=_template("report.css"),
        scripts=[_template(name) for name in ("report.js", *(["board.js"] if live_version is not None else []))],
        plotly=_plotly(),
    )


def _template(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _section(number: int, run: RunContent, max_bytes: int, folder: str | None) -> Section:
    strips = make_strips(run)
    sprites = make_sprites(strips.images, run.images(), max_bytes)
    drawn, rows = figures(run), _concept_rows(run)
    data = {
        "strips": strips.as_json(sprites, folder is not None),
        "images": folder,
        "sprites": {"side": sprites.side, "columns": COLUMNS, "rows": ROWS},
        "figures": {figure.id: _without_markup(figure.plot) for figure in drawn},
    }
    return Section(
        number,
        run,
        drawn,
        disagreements(run.table),
        attack_rows(run.attacks),
        data,
        sprites.encoded(),
        sprites.left_out,
        len(sprites.missing),
        rows,
        [
            MethodPart(
                row,
                [model for model in run.models if model.label == row.method],
                sorted((one for one in rows if one.method == row.method), key=lambda one: one.scores["err"]),
            )
            for row in run.rows
            if row.method in run.scores and not is_base(row)
        ],
    )


def _without_markup(plot: Any, name: str = "") -> Any:
    """A plot whose labels are texts: Plotly takes some of HTML in them for markup, as our own templates mean it."""
    if isinstance(plot, dict):
        return {key: _without_markup(value, key) for key, value in plot.items()}
    if isinstance(plot, list | tuple):
        return [_without_markup(value, name) for value in plot]
    return html.escape(shown(plot), quote=False) if isinstance(plot, str) and name != "hovertemplate" else plot


def _concept_rows(run: RunContent) -> list[ConceptRow]:
    """Concept by concept, the method that did best on it first."""
    rows = [
        ConceptRow(concept, method, values, scores.intervals.concepts[concept]["err"])
        for method, scores in run.scores.items()
        for concept, values in scores.concepts.items()
    ]
    return sorted(rows, key=lambda row: (row.concept, -row.scores["err"], row.method))


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs  # a second to import

    return str(get_plotlyjs())


def _script_json(value: Any) -> str:
    """JSON that can stand in a script element: no text of it can end the element, or begin a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _number(value: Any) -> str:
    """A number with four significant digits, a text as it is, nothing for None."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else shown(str(value))


def _interval(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f"{ends[0]:.3f}–{ends[1]:.3f}"


def _balanced(calibration: Calibration) -> list[tuple[str, Accuracy]]:
    """Of each concept how often the judge is right, the least often first."""
    return sorted(calibration.accuracy.items(), key=lambda of: ((of[1].recall or 0) + (of[1].specificity or 0), of[0]))
