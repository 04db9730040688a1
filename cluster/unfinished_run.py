"""What is said of a run that was stopped on the way, to whoever wants its results."""

from efface.cluster.campaign.plan import Plan
from efface.cluster.run_summary import summarize
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.stored_plan import is_campaign, stored_plan
from efface.cluster.tasks.judging import Shard
from efface.errors import UserError


def not_finished(folder: RunFolder, plan: Plan | None = None) -> UserError:
    """How far the run is, and the command that goes on with it.

    plan: of the run, where it is made already. Raises UserError where the folder is none of a campaign or an
    evaluation, or cannot be planned.
    """
    folder.must_exist()
    summary = summarize(plan or stored_plan(folder, fetch=False), folder)
    if summary.failures:
        first = summary.failures[0]
        return UserError(
            f"{folder.root}: is not finished, {first.job} was given up ({first.stage}: {first.reason}); "
            f"`efface retry {folder.root}` tries it again"
        )
    judging = summary.tasks[Shard.kind]
    command = "efface run" if is_campaign(folder) else "efface evaluate"
    return UserError(
        f"{folder.root}: is not finished ({judging.done} of {judging.all} images are judged); run the same "
        f"`{command}` again, which goes on from there"
    )
