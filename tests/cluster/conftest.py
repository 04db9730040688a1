"""What the tests of campaigns share: the tiny world of `tiny_campaign.py`, and campaigns in it."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from tiny_campaign import campaign_dict, campaign_file, world

from efface.cluster.campaign import Campaign
from efface.cluster.expand import plan_campaign
from efface.cluster.plan import Plan
from efface.cluster.run import carry_out, open_run
from efface.strict import parse

__all__ = ["campaign_file", "world"]

MakeCampaign = Callable[..., Campaign]
MakePlan = Callable[..., Plan]


@pytest.fixture
def campaign(world: Path) -> MakeCampaign:
    """A function from changed keys to a campaign."""
    return lambda **changes: parse(Campaign, campaign_dict(world, **changes), "campaign")


@pytest.fixture
def plan(campaign: MakeCampaign) -> MakePlan:
    """A function from changed keys to a campaign's plan."""
    return lambda **changes: plan_campaign(campaign(**changes))


@pytest.fixture(scope="session")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the campaign as `campaign()` gives it, carried out in this process. Not to be changed."""
    root = tmp_path_factory.mktemp("finished") / "run"
    opened = open_run(parse(Campaign, campaign_dict(world), "campaign"), root)
    carry_out(opened, 0, None, Console(file=io.StringIO()))
    return root
