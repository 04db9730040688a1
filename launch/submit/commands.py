"""`efface submit ray | slurm | kube`: hand a campaign to a cluster. Nothing heavy is imported before it is needed."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from efface.launch.submit.launch_record import LaunchRecord

app = typer.Typer(
    no_args_is_help=True,
    help="Hand a campaign to a cluster: Ray, SLURM or Kubernetes. The run folder is the one that `efface run` makes.",
)

CampaignArgument = Annotated[str, typer.Argument(help="A campaign YAML, or the name of a shipped one.")]
ProfileOption = Annotated[
    str, typer.Option("--cluster", "-c", help="A cluster profile, or the name of one in configs/clusters/.")
]
OutOption = Annotated[
    str | None,
    typer.Option("--out", "-o", help="The run folder, as the cluster sees it: a path or a URL; default: runs/NAME."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Overrides a key of the campaign; repeatable."),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would be submitted, and submit nothing.")]


@app.command()
def slurm(
    campaign: CampaignArgument,
    cluster: ProfileOption = "local",
    out: OutOption = None,
    set_: SetOption = None,
    style: Annotated[
        str | None,
        typer.Option(help="array, shared or exclusive: parts without Ray, or a Ray on shared nodes or one's own."),
    ] = None,
    dry_run: DryRunOption = False,
) -> None:
    """Write batch scripts for a campaign and queue them."""
    from typing import get_args

    from efface.cluster.campaign.planner import plan_campaign
    from efface.cluster.run import open_run
    from efface.errors import UserError, did_you_mean
    from efface.launch.submit import slurm as launcher
    from efface.launch.submit.launch_spec import read_launch_spec
    from efface.launch.submit.profile import SlurmConfig, read_cluster

    profile, spec = read_cluster(cluster), read_launch_spec(campaign, set_ or [], out)
    styles = get_args(SlurmConfig.model_fields["style"].annotation)
    chosen = style or profile.slurm.style
    if chosen not in styles:
        raise UserError(f"--style: unknown '{chosen}', {did_you_mean(chosen, styles)}")
    models = len(plan_campaign(spec.campaign, fetch=False).models)
    script_texts = launcher.scripts(spec, profile, chosen, models)
    if dry_run:
        for name, text in script_texts.items():
            typer.echo(f"==> {launcher.launch_folder(spec) / name}.sh <==\n{text}")
        return
    launcher.validate(spec, profile, script_texts)
    open_run(spec.campaign, spec.folder)
    jobs, new = launcher.submit(spec, profile, chosen, script_texts)
    _print_jobs(jobs, new)
    typer.echo(f"run folder: {spec.out}\nscripts and logs: {launcher.launch_folder(spec)}")


@app.command()
def ray(
    campaign: CampaignArgument,
    cluster: ProfileOption = "local",
    out: OutOption = None,
    set_: SetOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show its output until it ends.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop it, once its jobs are saved.")] = False,
) -> None:
    """Submit a campaign as a job of a Ray cluster; typed again, it finds the job that is there."""
    from efface.config_files import find_config
    from efface.launch.submit import ray_job as launcher
    from efface.launch.submit.launch_spec import read_launch_spec
    from efface.launch.submit.profile import read_cluster

    profile, spec = read_cluster(cluster), read_launch_spec(campaign, set_ or [], out)
    if stop:
        typer.echo(f"stopped: {launcher.stop(spec, profile)}")
        return
    job, new = launcher.submit(spec, profile, str(find_config("clusters", cluster).absolute()))
    _print_jobs([job], new)
    if follow and not launcher.follow(spec, profile, job):
        raise typer.Exit(1)


@app.command()
def kube(
    campaign: CampaignArgument,
    cluster: ProfileOption,
    out: OutOption = None,
    set_: SetOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Write a KubeRay RayJob for a campaign and apply it with kubectl."""
    from efface.config_files import find_config
    from efface.launch.submit import kuberay as launcher
    from efface.launch.submit.launch_spec import read_launch_spec
    from efface.launch.submit.profile import read_cluster

    profile = read_cluster(cluster)
    spec = read_launch_spec(campaign, set_ or [], out, f"{launcher.kube_config(profile).mount}/runs")
    text = launcher.manifest(spec, profile)
    if dry_run:
        typer.echo(text, nl=False)
        return
    job, new = launcher.apply(spec, profile, str(find_config("clusters", cluster).absolute()), text)
    _print_jobs([job], new)


def _print_jobs(jobs: "list[LaunchRecord]", new: bool) -> None:
    for job in jobs:
        typer.echo(f"{'submitted' if new else 'there already'}: {job.launcher} {job.name} {job.id}")
