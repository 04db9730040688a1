"""The command line `efface`: puts the commands of `launch/commands/` together, and ends with a documented exit code.

Exit codes: 0 done, 1 a job failed or output was lost, 2 a user's mistake, 75 try again later (a disk that is full, a
store out of reach, a machine too busy to start Ray), 130 interrupted or stopped on request.
"""

import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from efface.errors import JobFailure, Stopped, UserError
from efface.launch.terminal.output_streams import with_output
from efface.text import shown

PANELS = {
    "Erase": ("unlearn", "export"),
    "Hand in": ("package", "verify", "push", "pull"),
    "Judge": ("evaluate", "score", "quality", "attack", "calibrate"),
    "Campaigns": (
        "run",
        "plan",
        "status",
        "report",
        "board",
        "retry",
        "cancel",
        "logs",
        "gc",
        "search",
        "submit",
        "prefetch",
    ),
    "Look up": ("doctor", "methods", "judges", "attacks", "concepts", "prompts", "bases"),
}
"""The commands by their heading in the help; each is a module of `launch/commands/`."""
INTERRUPTED = "interrupted; what is finished is kept, the same command goes on from there"
CONTEXT = {"help_option_names": ["-h", "--help"]}
LAUNCHER_HELP = (
    "Hand a campaign to a cluster: Ray, SLURM or Kubernetes. The run folder is the one that `efface run` makes."
)

app = typer.Typer(
    name="efface",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings=CONTEXT,
    help=(
        "Makes a text-to-image diffusion model forget named concepts, and proves what it forgot and what it kept.\n\n"
        "Start with  [bold]efface run demo[/bold]  (minutes, no GPU, no download), or erase one concept:\n\n"
        "[bold]efface unlearn esd --concept 'Van Gogh' --base sd-v1-4[/bold]"
    ),
)


class LauncherGroup(TyperGroup):
    """`efface submit`: one command for each launcher, imported when it is first needed."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Those that can be imported: a broken one of somebody else's keeps nobody from the others."""
        from efface.launch.launcher import LAUNCHERS

        names = []
        for name in LAUNCHERS.names():
            try:
                LAUNCHERS.get(name)
            except UserError as error:
                logging.getLogger(__name__).warning("%s", error)
            else:
                names.append(name)
        return names

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        from efface.launch.commands import submit

        command = submit.command(cmd_name)
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, context_settings=CONTEXT)
        single.command(cmd_name, help=command.help)(command.function())
        return typer.main.get_command(single)


def _assemble() -> None:
    for panel, names in PANELS.items():
        for name in names:
            if name == "submit":
                launchers = typer.Typer(cls=LauncherGroup, no_args_is_help=True, help=LAUNCHER_HELP)
                launchers.callback()(lambda: None)
                app.add_typer(launchers, name=name, rich_help_panel=panel)
                continue
            command = importlib.import_module(f"efface.launch.commands.{name}").COMMAND
            app.command(name, help=command.help, rich_help_panel=panel)(command.function())


_assemble()


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        from efface import __version__

        typer.echo(f"efface {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line and exit, with one of the codes above."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # a stream of somebody else's
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    code, error = with_output(_exit_code)
    if error:
        _print_error(error, code)
    sys.exit(code)


def _exit_code() -> int:
    try:
        with _log_to_stderr():
            app(prog_name="efface")
    except (UserError, JobFailure, Stopped) as error:
        return _print_error(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _print_error(INTERRUPTED, 130)
    except SystemExit as end:
        if end.code == 130:  # typer's answer to an interruption
            return _print_error(INTERRUPTED, 130)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _print_error(message: str, code: int) -> int:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(Text.assemble(("efface:", "bold red"), f" {shown(message)}"))
    return code


@contextmanager
def _log_to_stderr() -> Iterator[None]:
    """A block in which what efface logs is shown, one line for each message."""

    class OneLine(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return "\n".join(map(shown, super().format(record).split("\n")))

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine("efface: %(message)s"))
    logger = logging.getLogger("efface")
    before = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before[0], before[2]
        logger.setLevel(before[1])
