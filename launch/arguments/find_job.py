"""Jobs of a run by what people type."""

from typing import TYPE_CHECKING

from efface.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from efface.cluster.campaign.plan import Model, Plan


def find_job(plan: "Plan", name: str) -> "Model":
    """The job called by its folder's name, its id, or the beginning of either. Raises UserError."""
    found = [model for model in plan.models if name in (model.id, model.folder)]
    found = found or [m for m in plan.models if name and (m.id.startswith(name) or m.folder.startswith(name))]
    if not found:
        raise UserError(f"'{name}' is no job of this run, {did_you_mean(name, (model.folder for model in plan.jobs))}")
    if len(found) > 1:
        some = ", ".join(model.folder for model in found[:4])
        raise UserError(
            f"'{name}' could be {len(found)} jobs ({some}{', …' if len(found) > 4 else ''}), give more of it"
        )
    return found[0]
