"""A search in the tiny world of `tiny_campaign.py`. Packages that need it import the fixtures into their conftest."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_campaign import LIMITS

from efface.cluster.search.spec import Search
from efface.config_files import parse

MakeSearch = Callable[..., Search]

UCE: dict[str, Any] = {
    "method": "uce",
    "config": {},
    "space": {"ridge": {"loguniform": [0.1, 10.0]}, "tokens": {"choice": ["last-subject", "all"]}},
}
"""Changes of `search_dict` that search a closed form, which needs no steps."""


def search_dict(campaign_inputs: Path, **changes: Any) -> dict[str, Any]:
    """A search of ESD on one target; `changes` replace its keys."""
    return {
        "name": "tiny",
        "base": str(campaign_inputs / "base.yaml"),
        "concepts": {"targets": ["cat"]},
        "method": "esd",
        "config": {"rollout_steps": 3},
        "space": {"learning_rate": {"loguniform": [1e-4, 1e-2]}, "steps": {"integer": [1, 3]}},
        "trials": 4,
        "rungs": [1, 3],
        "evaluation": {"prompts_per_concept": LIMITS, "shard_size": 5},
        **changes,
    }


@pytest.fixture
def search(campaign_inputs: Path) -> MakeSearch:
    """A function from changed keys to a search."""
    return lambda **changes: parse(Search, search_dict(campaign_inputs, **changes), "search")
