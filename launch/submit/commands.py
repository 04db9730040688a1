"""`efface submit ray | slurm | kube`: hand a campaign to a cluster. Nothing heavy is imported before it is needed."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from efface.launch.submit.launched import Job

app = typer.Typer(
    no_args_is_help=True,
    help="Hand a campaign to a cluster: Ray, SLURM or Kubernetes. The run folder is the one that `efface run` makes.",
)

Campaign = Annotated[str, typer.Argument(help="A campaign YAML, or the name of a shipped one.")]
Profile = Annotated[
    str, typer.Option("--cluster", "-c", help="A cluster profile, or the name of one in configs/clusters/.")
]
Out = Annotated[
    str | None,
    typer.Option("--out", "-o", help="The run folder, as the cluster sees it: a path or a URL; default: runs/NAME."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Overrides a key of the campaign; repeatable."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be submitted, and submit nothing.")]


@app.command()
def slurm(
    campaign: Campaign,
    cluster: Profile = "local",
    out: Out = None,
    set_: Set = None,
    style: Annotated[
        str | None,
        typer.Option(help="array, shared or exclusive: parts without Ray, or a Ray on shared nodes or one's own."),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Write batch scripts for a campaign and queue them."""
    from typing import get_args

    from efface.cluster.expand import plan_campaign
    from efface.cluster.run import open_run
    from efface.errors import UserError, did_you_mean
    from efface.launch.submit import slurm as launcher
    from efface.launch.submit.order import read_order
    from efface.launch.submit.profile import SlurmPlace, read_cluster

    profile, order = read_cluster(cluster), read_order(campaign, set_ or [], out)
    styles = get_args(SlurmPlace.model_fields["style"].annotation)
    chosen = style or profile.slurm.style
    if chosen not in styles:
        raise UserError(f"--style: unknown '{chosen}', {did_you_mean(chosen, styles)}")
    models = len(plan_campaign(order.campaign, fetch=False).models)
    texts = launcher.scripts(order, profile, chosen, models)
    if dry_run:
        for name, text in texts.items():
            typer.echo(f"==> {launcher.launch_folder(order) / name}.sh <==\n{text}")
        return
    launcher.check(order, profile, texts)
    open_run(order.campaign, order.folder)
    jobs, new = launcher.submit(order, profile, chosen, texts)
    _tell(jobs, new)
    typer.echo(f"run folder: {order.out}\nscripts and logs: {launcher.launch_folder(order)}")


@app.command()
def ray(
    campaign: Campaign,
    cluster: Profile = "local",
    out: Out = None,
    set_: Set = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show its output until it ends.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop it, once its jobs are saved.")] = False,
) -> None:
    """Submit a campaign as a job of a Ray cluster; typed again, it finds the job that is there."""
    from efface.launch.submit import ray_job as launcher
    from efface.launch.submit.order import read_order
    from efface.launch.submit.profile import read_cluster
    from efface.strict import find_config

    profile, order = read_cluster(cluster), read_order(campaign, set_ or [], out)
    if stop:
        typer.echo(f"stopped: {launcher.stop(order, profile)}")
        return
    job, new = launcher.submit(order, profile, str(find_config("clusters", cluster).absolute()))
    _tell([job], new)
    if follow and not launcher.follow(order, profile, job):
        raise typer.Exit(1)


@app.command()
def kube(
    campaign: Campaign,
    cluster: Profile,
    out: Out = None,
    set_: Set = None,
    dry_run: DryRun = False,
) -> None:
    """Write a KubeRay RayJob for a campaign and apply it with kubectl."""
    from efface.launch.submit import kube as launcher
    from efface.launch.submit.order import read_order
    from efface.launch.submit.profile import read_cluster
    from efface.strict import find_config

    profile = read_cluster(cluster)
    order = read_order(campaign, set_ or [], out, f"{launcher.place_of(profile).mount}/runs")
    text = launcher.manifest(order, profile)
    if dry_run:
        typer.echo(text, nl=False)
        return
    job, new = launcher.apply(order, profile, str(find_config("clusters", cluster).absolute()), text)
    _tell([job], new)


def _tell(jobs: "list[Job]", new: bool) -> None:
    for job in jobs:
        typer.echo(f"{'submitted' if new else 'there already'}: {job.by} {job.what} {job.id}")
