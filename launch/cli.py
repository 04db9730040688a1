"""The command line `efface`: parse, then call one function. Nothing heavy is imported before it is needed."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from efface.errors import JobFailure, Stopped, UserError
from efface.launch.submit.commands import app as submit

app = typer.Typer(
    name="efface",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Makes a text-to-image diffusion model forget named concepts, and proves what it forgot and what it kept.\n\n"
        "Start with  [bold]efface run demo[/bold]  (minutes, no GPU, no download), or erase one concept:\n\n"
        "[bold]efface unlearn esd --concept 'Van Gogh' --base sd-v1-4[/bold]"
    ),
)

UNLEARN_PANEL, EVALUATE_PANEL, CAMPAIGN_PANEL, LISTING_PANEL = "Erase", "Judge", "Campaigns", "Look up"
app.add_typer(submit, name="submit", rich_help_panel=CAMPAIGN_PANEL)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
BaseOption = Annotated[
    str,
    typer.Option(
        "--base",
        "-b",
        help="A base of `efface bases`, a diffusers folder, a .safetensors or .ckpt file, or a hub id.",
    ),
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …; auto takes a GPU if there is one.")]

WorkersOption = Annotated[
    int | None, typer.Option(min=0, help="At most so many workers; 0: in this process, without Ray.")
]
AddressOption = Annotated[
    str | None, typer.Option(help="Join the Ray cluster there; default: $RAY_ADDRESS, or a local one.")
]
RunFolderArgument = Annotated[str, typer.Argument(help="A run folder: a path, or a URL such as s3://bucket/folder.")]
OutOption = Annotated[
    str | None,
    typer.Option("--out", "-o", help="The run folder, a path or a URL such as s3://bucket/folder; default: runs/NAME."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Overrides a key of the campaign; repeatable."),
]


@app.command(rich_help_panel=UNLEARN_PANEL)
def unlearn(
    method: Annotated[str, typer.Argument(help="A method of `efface methods`.")],
    concept: Annotated[
        list[str], typer.Option("--concept", "-c", help="What to forget; repeat it for several in one model.")
    ],
    base: BaseOption = "miniature",
    concepts: Annotated[
        str | None, typer.Option("--concepts", help="Concept set by name or file; default: the base's own.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Settings shipped for the method, or a YAML file; default: one named like the base, if there is."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="A field of the method's config; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same delta.")] = 0,
    after: Annotated[
        Path | None,
        typer.Option(help="Go on from this delta: what it erased stays erased, and the concept goes too."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The delta to write; default: METHOD-CONCEPT.safetensors."),
    ] = None,
    device: DeviceOption = "auto",
    setup: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="How it is run: deepspeed, attention, gradient_checkpointing … (docs/multi-gpu.md); repeatable.",
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            help="Train nothing: write the job to this file, for torchrun on several GPUs (docs/multi-gpu.md)."
        ),
    ] = None,
) -> None:
    """Erase one concept, or several, with one method; the result is a delta file."""
    from efface.launch import erase

    training_options = setup or []
    erase.unlearn(
        method, tuple(concept), base, concepts, preset, set_ or [], seed, out, device, after, training_options, work
    )


@app.command(rich_help_panel=UNLEARN_PANEL)
def export(
    delta: Annotated[Path, typer.Argument(help="A delta file.")],
    folder: Annotated[Path, typer.Argument(help="The diffusers folder to write.")],
    base: BaseOption = "miniature",
) -> None:
    """Write base and delta together as an ordinary diffusers folder."""
    from efface.launch import erase

    erase.export(delta, folder, base)


@app.command(rich_help_panel=EVALUATE_PANEL)
def evaluate(
    deltas: Annotated[list[Path], typer.Argument(help="Delta files of one method.")],
    base: BaseOption = "miniature",
    concepts: Annotated[
        str | None, typer.Option("--concepts", help="Concept set by name or file; default: the base's own.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="Prompt set by name or CSV file; default: the base's own.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="How images are made; default: the base's own.")] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(help="A judge of `efface judges`; repeatable; default: the base's own."),
    ] = None,
    images_per_prompt: Annotated[int, typer.Option(min=1, help="Images of each prompt.")] = 4,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The run folder to write; default: runs/evaluation-ID.")
    ] = None,
    workers: WorkersOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Make images with edited models and the base, judge them, and write table, scores and contact sheets."""
    from efface.launch import judging

    judging.evaluate(deltas, base, concepts, prompts, recipe, judge or [], images_per_prompt, out, workers, device)


@app.command(rich_help_panel=EVALUATE_PANEL)
def score(
    table: Annotated[str, typer.Argument(help="An image table, or a folder of them: a path or a URL.")],
    method: Annotated[str | None, typer.Option(help="Score this method of the table alone.")] = None,
    judge: Annotated[str | None, typer.Option(help="Take this judge's verdicts.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute every score from an image table alone."""
    from efface.launch import judging

    judging.score(table, method, judge, as_json)


@app.command(rich_help_panel=EVALUATE_PANEL)
def attack(
    base: BaseOption = "miniature",
    concepts: Annotated[
        str | None, typer.Option("--concepts", help="Concept set by name or file; default: the base's own.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(help="Prompt set by name or CSV file; default: the base's own.")
    ] = None,
    concept: Annotated[
        list[str] | None, typer.Option("--concept", "-c", help="Only for this concept; repeatable.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="Keeps what the base really draws; default: the base's own.")
    ] = None,
    per_concept: Annotated[int, typer.Option(min=1, help="Prompts wanted for each concept.")] = 5,
    seed: Annotated[int, typer.Option(help="Same seed, same prompts.")] = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="The prompt CSV to write.")] = Path("prompts.csv"),
    device: DeviceOption = "auto",
) -> None:
    """Search adversarial prompts against a base, and write its prompt file with them filled in."""
    from efface.launch import attack as search

    search.attack(base, concepts, prompts, concept or [], judge, per_concept, seed, out, device)


@app.command(rich_help_panel=CAMPAIGN_PANEL)
def run(
    campaign: Annotated[str, typer.Argument(help="A campaign YAML, or the name of a shipped one.")],
    out: OutOption = None,
    set_: SetOption = None,
    workers: WorkersOption = None,
    address: AddressOption = None,
    part: Annotated[
        str | None, typer.Option(metavar="K/N", help="Only part K of N, in this process: for arrays of batch jobs.")
    ] = None,
) -> None:
    """Run a campaign: train, judge and score many jobs at once. Typed again, it does only what is missing."""
    from efface.launch import campaigns

    campaigns.run(campaign, out, set_ or [], workers, address, part)


@app.command(rich_help_panel=CAMPAIGN_PANEL)
def plan(
    campaign: Annotated[str, typer.Argument(help="A campaign YAML, or the name of a shipped one.")],
    out: OutOption = None,
    set_: SetOption = None,
    rates: Annotated[
        str | None,
        typer.Option(help="Estimate by these rates: a file, or shipped ones by name; default: measured here."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a campaign would do and cost: jobs, shards, images, hours, disk, and what is done already."""
    from efface.launch import campaigns

    campaigns.plan(campaign, out, set_ or [], rates, as_json)


@app.command(rich_help_panel=CAMPAIGN_PANEL)
def status(folder: RunFolderArgument, as_json: JsonOption = False) -> None:
    """Show how far a run is, while it runs or after."""
    from efface.launch import campaigns

    campaigns.status(folder, as_json)


@app.command(rich_help_panel=CAMPAIGN_PANEL)
def retry(
    folder: RunFolderArgument,
    jobs: Annotated[list[str] | None, typer.Argument(help="Jobs by name or id; default: all that failed.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="All that failed, as without any job named.")] = False,
    workers: WorkersOption = None,
    address: AddressOption = None,
) -> None:
    """Try again the jobs of a run that failed."""
    from efface.launch import campaigns

    campaigns.retry(folder, [] if failed else jobs or [], workers, address)


@app.command(rich_help_panel=CAMPAIGN_PANEL)
def cancel(
    folder: RunFolderArgument,
    job: Annotated[str | None, typer.Argument(help="Give up this job alone; default: the run is laid down.")] = None,
) -> None:
    """Lay down a run, wherever it runs: jobs save what they have, and the same command goes on from there."""
    from efface.launch import campaigns

    campaigns.cancel(folder, job)


@app.command(rich_help_panel=CAMPAIGN_PANEL)
def logs(
    folder: RunFolderArgument,
    job: Annotated[
        str | None,
        typer.Argument(
            help="A job by the name of its folder, its id, or the beginning of either; default: all events."
        ),
    ] = None,
) -> None:
    """Show what happened to a job, what its training printed, and why it failed; or all that happened in a run."""
    from efface.launch import campaigns

    campaigns.logs(folder, job)


@app.command(rich_help_panel=CAMPAIGN_PANEL)
def gc(
    folder: RunFolderArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove what a run folder needs no more: half-written files, checkpoints and caches of finished jobs."""
    from efface.launch import campaigns

    campaigns.gc(folder, dry_run)


@app.command(rich_help_panel=CAMPAIGN_PANEL)
def search(
    file: Annotated[str, typer.Argument(help="A search YAML, or the name of a shipped one.")],
    out: OutOption = None,
    set_: SetOption = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Configs to try, in all; default: the file's.")] = None,
    workers: WorkersOption = None,
    address: AddressOption = None,
) -> None:
    """Search a method's settings: many on few images, the best on more. Typed again, it goes on where it was."""
    from efface.launch import search as search_module

    search_module.search(file, out, set_ or [], trials, workers, address)


@app.command(rich_help_panel=CAMPAIGN_PANEL)
def prefetch(
    names: Annotated[list[str], typer.Argument(help="Campaigns or bases.")],
) -> None:
    """Fetch the models that campaigns or bases need, once; afterwards HF_HUB_OFFLINE=1 works."""
    from efface.launch import prefetch as prefetch_module

    prefetch_module.prefetch(names)


@app.command(rich_help_panel=LISTING_PANEL)
def doctor(
    campaign: Annotated[str | None, typer.Argument(help="A campaign this machine should be fit for.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Look at this machine: versions, GPUs, memory, disk, hub, Ray. Exit code 1 where something must be mended."""
    from efface.launch import doctor as doctor_module

    doctor_module.doctor(campaign, as_json)


@app.command(rich_help_panel=LISTING_PANEL)
def methods(
    name: Annotated[str | None, typer.Argument(help="One method, with every field of its config.")] = None,
    as_json: JsonOption = False,
) -> None:
    """The unlearning methods and their settings."""
    from efface.launch import listings

    listings.methods(name, as_json)


@app.command(rich_help_panel=LISTING_PANEL)
def judges(as_json: JsonOption = False) -> None:
    """The judges that decide whether a concept is in an image."""
    from efface.launch import listings

    listings.judges(as_json)


@app.command(rich_help_panel=LISTING_PANEL)
def concepts(
    name: Annotated[str | None, typer.Argument(help="One concept set by name or file, with its concepts.")] = None,
    as_json: JsonOption = False,
) -> None:
    """The concept sets, or the concepts of one."""
    from efface.launch import listings

    listings.concepts(name, as_json)


@app.command(rich_help_panel=LISTING_PANEL)
def prompts(
    file: Annotated[str, typer.Argument(help="A prompt set by name, or a CSV file such as the challenge's.")],
    concepts: Annotated[
        str,
        typer.Option("--concepts", help="The concept set its names belong to; default: found by the file's names."),
    ] = "",
    concept: Annotated[
        str | None, typer.Option("--concept", "-c", help="Show every prompt this target is judged by.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Read, check and show a prompt file."""
    from efface.launch import listings

    listings.prompts(file, concepts, concept, as_json)


@app.command(rich_help_panel=LISTING_PANEL)
def bases(as_json: JsonOption = False) -> None:
    """The bases known by name."""
    from efface.launch import listings

    listings.bases(as_json)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> None:
    if version:
        from efface import __version__

        typer.echo(f"efface {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 a job failed, 2 a user's mistake, 130 interrupted."""
    try:
        app(prog_name="efface")
    except UserError as error:
        sys.exit(_print_error(str(error), 2))
    except JobFailure as error:
        sys.exit(_print_error(str(error), 1))
    except Stopped as stopped:
        sys.exit(_print_error(str(stopped), 130))
    except SystemExit as end:
        if end.code == 130:  # typer's answer to an interruption
            _print_error("interrupted; what is finished is kept, the same command goes on from there", 130)
        raise


def _print_error(message: str, code: int) -> int:
    from rich.console import Console

    Console(stderr=True, soft_wrap=True, highlight=False).print(
        f"[bold red]efface:[/bold red] {_escape_markup(message)}"
    )
    return code


def _escape_markup(text: str) -> str:
    """`text` with brackets that rich would take for markup made literal."""
    from rich.markup import escape

    return escape(text)
