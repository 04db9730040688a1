"""The plan of a run folder, made again from what was requested in it: a campaign, or deltas to be judged."""

from pathlib import Path
from typing import Any

from efface.cluster.campaign.plan import Plan
from efface.cluster.campaign.planner import plan_campaign, plan_deltas
from efface.cluster.campaign.sharding import Look
from efface.cluster.campaign.spec import Campaign, DeltaEvaluation
from efface.cluster.storage.records import read_json
from efface.cluster.storage.run_folder import RunFolder
from efface.concepts.prompts import AXES
from efface.config_files import read_config
from efface.errors import UserError
from efface.models.delta import Delta

SEQUENTIAL = "sequential.json"
"""Of an evaluation that draws images look by look: how many of each prompt are drawn so far, axis by axis."""


def stored_plan(folder: RunFolder, fetch: bool = True) -> Plan:
    """Raises UserError where it cannot be made. Without `fetch` it is provisional where the base is only on the hub."""
    if is_campaign(folder):
        return plan_campaign(read_config(Campaign, folder.campaign), fetch)
    requested = read_config(DeltaEvaluation, folder.evaluation)
    return plan_deltas(stored_deltas(folder), requested, _looks(folder.root), fetch)


def stored_deltas(folder: RunFolder) -> list[tuple[Path, Delta]]:
    """Those that an evaluation judges. Raises UserError where one cannot be read."""
    return [(path, Delta.load(path)) for path in sorted(folder.root.glob("jobs/*/delta.safetensors"))]


def is_campaign(folder: RunFolder) -> bool:
    """Whether it is the folder of a campaign, not of an evaluation of deltas."""
    return folder.campaign.is_file() or not folder.evaluation.is_file()


def _looks(root: Path) -> tuple[Look, ...]:
    """The looks that were begun; none where all images are drawn at once. Raises UserError for a damaged file."""
    if not (root / SEQUENTIAL).is_file():
        return ()
    found: Any = read_json(root, SEQUENTIAL)
    try:
        drawn = {axis: int(found["images_per_prompt"][axis]) for axis in AXES}
        sizes = [int(size) for size in found["looks"] if size <= max(drawn.values())]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{root / SEQUENTIAL}: does not say which images are drawn") from None
    return tuple(
        Look(range(before, size), frozenset(axis for axis in AXES if drawn[axis] < size))
        for before, size in zip((0, *sizes), sizes, strict=False)
    )
