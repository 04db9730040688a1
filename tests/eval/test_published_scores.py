"""Published results: the numbers of the source, under the names of our concept set, and never as one's own."""

from statistics import fmean, harmonic_mean

import pytest
from report_runs import run_content

from efface.concepts.concept import load_concept_set
from efface.eval.published_scores import CAUTION, published_for
from efface.eval.report.page import report_html

ALL = [concept.name for concept in load_concept_set("genmu-2025").all]


@pytest.mark.parametrize(
    ("method", "mean"),
    [("ESD", 0.474), ("CA", 0.468), ("FMN", 0.452), ("FADE", 0.601), ("Team 1", 0.4959), ("Team 2", 0.4460)],
)
def test_the_means_over_the_challenges_concepts_are_those_of_the_site(method: str, mean: float) -> None:
    found = [result.err for result in published_for(ALL) if result.method == method]
    assert len(found) == 20
    assert fmean(found) == pytest.approx(mean, abs=6e-4)


def test_the_five_axes_give_the_mean_that_their_source_prints_to_its_rounding() -> None:
    found = [result for result in published_for(ALL) if result.axes]
    assert len(found) == 20
    assert fmean(harmonic_mean(result.axes.values()) for result in found) == pytest.approx(0.7245, abs=1e-4)


def test_concepts_are_known_by_their_aliases_and_others_have_no_results() -> None:
    assert published_for(["Barbeton Daisy"]) == published_for(["Barberton Daisy"]) != []
    assert published_for(["unicorn"]) == []


def test_the_page_shows_them_apart_with_the_caution() -> None:
    html = report_html([run_content(published=tuple(published_for(["Blue Jay"])))], "title")
    assert CAUTION in html and "MapRoute++" in html and "0.299" in html
    assert "MapRoute++" not in report_html([run_content()], "title")
