"""Heat maps of a report: forgotten against asked concepts, attacks against models, layers against methods."""

import math
from collections.abc import Sequence

from efface.eval.attacking.attack_transfer import Transferred
from efface.eval.report.figure import Figure, make_plot
from efface.eval.report.queries import interference
from efface.eval.report.reported_run import ReportedModel, RunContent
from efface.eval.weight_change_values import mean_layers


def heat_map(run: RunContent, method: str, number: int) -> Figure | None:
    """What forgetting each concept did to every concept that was asked for."""
    changes = interference(run.table, run.judge, method)
    if not changes:
        return None
    erased = sorted({pair[0] for pair in changes})
    asked = [*erased, *sorted({pair[1] for pair in changes} - set(erased))]
    values = [[changes.get((target, other)) for other in asked] for target in erased]
    plot = make_plot(
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


def matrix(transfers: Sequence[Transferred]) -> Figure | None:
    """What the prompts that were found against one method's models do on those of every other."""
    pairs: dict[tuple[str, str], list[Transferred]] = {}
    for row in transfers:
        pairs.setdefault((f"{row.attack} on {row.source}", row.method), []).append(row)
    sources, methods = (list(dict.fromkeys(pair[i] for pair in pairs)) for i in (0, 1))
    shares = {pair: _share(found) for pair, found in pairs.items()}
    plot = make_plot(
        [
            {
                "type": "heatmap",
                "x": methods,
                "y": sources,
                "z": [[shares.get((source, method)) for method in methods] for source in sources],
                "zmin": 0,
                "zmax": 1,
                "colorscale": [[0, "#f7f7f7"], [1, "#b2182b"]],
                "xgap": 1,
                "ygap": 1,
                "hovertemplate": "found by %{y}<br>tried on %{x}<br>%{z:.2f}<extra></extra>",
                "colorbar": {"title": {"text": "shown"}, "thickness": 12},
            }
        ],
        {"title": {"text": "tried on"}, "type": "category", "automargin": True},
        {"title": {"text": "found by"}, "type": "category", "autorange": "reversed", "automargin": True},
    )
    plot["layout"]["height"] = 200 + 26 * len(sources)
    rows = tuple(
        (row.attack, row.source, row.method, row.concept, row.prompts, row.judged, row.shown) for row in transfers
    )
    return Figure(
        "matrix",
        "Attacks and models",
        "Heat map: of the prompts that an attack found against one method's models, the share of judged images in "
        "which they show the concept on another's.",
        plot,
        ("attack", "found against", "tried on", "concept", "prompts", "judged", "shown"),
        rows,
    )


def _share(rows: Sequence[Transferred]) -> float | None:
    """Of judged images, those that show the concept; None where none was judged."""
    judged = sum(row.judged for row in rows)
    return sum(row.shown for row in rows) / judged if judged else None


def changes_by_layer(models: Sequence[ReportedModel]) -> Figure | None:
    """In which layers each method changed the weights, and how far."""
    labels = list(dict.fromkeys(model.label for model in models))
    means = {label: mean_layers([model.layers for model in models if model.label == label]) for label in labels}
    layers = sorted({layer for of in means.values() for layer in of}, key=_in_order)
    if not layers:
        return None
    values = [[means[label].get(layer) for label in labels] for layer in layers]
    plot = make_plot(
        [
            {
                "type": "heatmap",
                "x": labels,
                "y": layers,
                "z": [[math.log10(one.relative_l2) if one else None for one in line] for line in values],
                "text": [[f"{one.relative_l2:.3g}" if one else "unchanged" for one in line] for line in values],
                "colorscale": "Viridis",
                "xgap": 1,
                "ygap": 1,
                "hovertemplate": "%{y}<br>%{x}<br>%{text}<extra></extra>",
                "colorbar": {"title": {"text": "log10 of<br>relative L2"}, "thickness": 12},
            }
        ],
        {"title": {"text": "method"}, "type": "category", "automargin": True},
        {"type": "category", "autorange": "reversed", "automargin": True},
    )
    plot["layout"]["height"] = 160 + 18 * len(layers)
    rows = tuple(
        (label, layer, one.relative_l2, one.global_l2)
        for label, by_layer in means.items()
        for layer in layers
        if (one := by_layer.get(layer))
    )
    return Figure(
        "layers",
        "Weight change per layer",
        f"Heat map of {len(layers)} layers and {len(labels)} methods: relative L2 change of a layer's weights, mean "
        "over a method's models, in powers of ten; empty where nothing changed.",
        plot,
        ("method", "layer", "relative L2 change", "L2 change"),
        rows,
    )


def _in_order(layer: str) -> tuple[int, int, list[int | str]]:
    """Text encoder, then the UNet from its input to its output, then the VAE."""
    part, _, rest = layer.partition(".")
    parts, places = ("text_encoder", "unet", "vae"), ("embeddings", "conv_in", "time", "down", "mid", "up", "conv_")
    place = next((i for i, start in enumerate(places) if rest.startswith(start)), len(places))
    words: list[int | str] = [int(word) if word.isdigit() else word for word in rest.split(".")]
    return parts.index(part) if part in parts else len(parts), place, words
