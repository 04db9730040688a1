"""The dashboard and the documentation show the metrics that there are: all of them, and no others."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest

from efface.cluster.scheduler.prometheus import PROMETHEUS_METRICS, PrometheusMetric

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "cluster" / "deploy" / "grafana.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
SERIES = {name: metric for metric in PROMETHEUS_METRICS for name in metric.exported}
COLUMNS = 24


def parsed(expression: str) -> list[Any]:
    """All nodes of an expression, Grafana's own variables filled in. Raises ValueError where it is no PromQL."""
    nodes: list[Any] = []
    text = expression.replace("$__rate_interval", "1m").replace("$SessionName", ".+")
    promql.walk(promql.parse(text), nodes.append)
    return nodes


def selectors(nodes: list[Any]) -> Iterator[Any]:
    for node in nodes:
        if isinstance(node, promql.VectorSelector):
            yield node
        elif isinstance(node, promql.MatrixSelector):
            yield node.vector_selector


def test_every_expression_selects_metrics_that_exist_in_the_chosen_session() -> None:
    assert len(EXPRESSIONS) >= len(PROMETHEUS_METRICS)
    for expression in EXPRESSIONS:
        found = list(selectors(parsed(expression)))
        assert found
        for selector in found:
            assert selector.name in SERIES, expression
            assert [matcher.name for matcher in selector.matchers.matchers] == ["SessionName"], expression


@pytest.mark.parametrize("metric", PROMETHEUS_METRICS, ids=lambda metric: metric.name)
def test_every_metric_has_a_panel(metric: PrometheusMetric) -> None:
    shown = {selector.name for expression in EXPRESSIONS for selector in selectors(parsed(expression))}
    assert shown & set(metric.exported)


def test_expressions_group_by_tags_that_their_metrics_have() -> None:
    for expression in EXPRESSIONS:
        nodes = parsed(expression)
        tags = {tag for selector in selectors(nodes) for tag in SERIES[selector.name].tags}
        buckets = {"le"} if any(selector.name.endswith("_bucket") for selector in selectors(nodes)) else set()
        for node in nodes:
            if isinstance(node, promql.AggregateExpr) and node.modifier:
                assert set(node.modifier.labels) <= tags | buckets, expression


def test_only_counters_and_histograms_are_queried_for_a_rate() -> None:
    for expression in EXPRESSIONS:
        for node in parsed(expression):
            if isinstance(node, promql.MatrixSelector):
                assert SERIES[node.vector_selector.name].kind != "gauge", expression


def test_legends_name_tags_of_their_metrics() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            tags = {tag for selector in selectors(parsed(target["expr"])) for tag in SERIES[selector.name].tags}
            named = {part.split("}}")[0] for part in target["legendFormat"].split("{{")[1:]}
            assert named <= tags, panel["title"]


def test_panels_have_an_id_a_title_and_a_place_of_their_own_on_the_grid() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert cells and not cells & taken and max(x for x, _ in cells) < COLUMNS, panel["title"]
        taken |= cells


def test_everything_asks_the_data_source_that_is_chosen_at_the_top() -> None:
    assert isinstance(DASHBOARD["schemaVersion"], int) and DASHBOARD["uid"] and DASHBOARD["title"]
    source, session = DASHBOARD["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    assert session["name"] == "SessionName"
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    items = [session, *DASHBOARD["panels"], *(target for panel in DASHBOARD["panels"] for target in panel["targets"])]
    assert all(item["datasource"] == chosen for item in items)


def test_the_documentation_lists_every_metric_with_its_kind_tags_and_meaning() -> None:
    lines = (ROOT / "docs" / "monitoring.md").read_text().splitlines()
    listed = [line for line in lines if line.startswith("| `ray_")]
    assert listed == [
        f"| `ray_{metric.name}{'_total' if metric.kind == 'counter' else ''}` | {metric.kind} | "
        f"{', '.join(f'`{tag}`' for tag in metric.tags) or '-'} | {metric.help} |"
        for metric in PROMETHEUS_METRICS
    ]
