"""What the tests of campaigns share: the tiny world of `tiny_campaign.py`, and campaigns in it."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from tiny_campaign import campaign_dict, campaign_file, campaign_inputs
from tiny_search import search

from efface.cluster.campaign.plan import Plan
from efface.cluster.campaign.planner import plan_campaign
from efface.cluster.campaign.spec import Campaign
from efface.cluster.run import execute, open_run
from efface.config_files import parse

__all__ = ["campaign_file", "campaign_inputs", "search"]

MakeCampaign = Callable[..., Campaign]
MakePlan = Callable[..., Plan]


@pytest.fixture
def campaign(campaign_inputs: Path) -> MakeCampaign:
    """A function from changed keys to a campaign."""
    return lambda **changes: parse(Campaign, campaign_dict(campaign_inputs, **changes), "campaign")


@pytest.fixture
def plan(campaign: MakeCampaign) -> MakePlan:
    """A function from changed keys to a campaign's plan."""
    return lambda **changes: plan_campaign(campaign(**changes))


@pytest.fixture(scope="session")
def finished(campaign_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the campaign as `campaign()` gives it, executed in this process. Not to be changed."""
    root = tmp_path_factory.mktemp("finished") / "run"
    opened = open_run(parse(Campaign, campaign_dict(campaign_inputs), "campaign"), root)
    execute(opened, 0, None, Console(file=io.StringIO()))
    return root
