"""The command from its first moment to its last: interrupts while modules are imported, and output that breaks."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_campaign import UCE

from efface.__main__ import main

INTERRUPT_AT = """
import atexit, os, signal, sys

class Interrupt:
    def find_spec(self, name, *more):
        if name == os.environ["AT"]:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
if os.environ["AT"] == "the end":
    atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))
from efface.__main__ import main
main()
"""


def interrupted_at(
    module: str, command: str = "bases", before: Callable[[], object] | None = None
) -> subprocess.CompletedProcess[str]:
    """A listing, interrupted when it imports `module`."""
    process, environment = [sys.executable, "-c", INTERRUPT_AT, command], {**os.environ, "AT": module}
    return subprocess.run(process, env=environment, capture_output=True, text=True, preexec_fn=before)


@pytest.mark.parametrize(
    "module", ["efface.launch.cli", "typer", "efface.launch.commands.methods", "efface.train.method", "torch"]
)
def test_ctrl_c_in_the_first_second_ends_in_one_sentence(module: str) -> None:
    done = interrupted_at(module, "methods")
    assert done.returncode == 130, done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("efface: interrupted")


def test_ctrl_c_while_the_command_ends_gives_no_traceback() -> None:
    done = interrupted_at("the end")
    assert done.returncode == 130 and done.stderr == "efface: interrupted\n" and "miniature" in done.stdout


def test_an_interrupt_that_is_ignored_from_the_start_stays_ignored() -> None:
    # As a shell does for `efface … &`.
    done = interrupted_at("typer", before=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    assert done.returncode == 0 and "miniature" in done.stdout


def run_efface(output: Callable[[], object], *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command; `output` changes its standard streams before it starts."""
    command = [sys.executable, "-m", "efface", *map(str, arguments)]
    return subprocess.run(command, preexec_fn=output, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def full_disk() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def full_disk_for_both() -> None:
    full_disk()
    os.dup2(1, 2)


def closed_pipe() -> None:
    there, here = os.pipe()
    os.close(there)
    os.dup2(here, 1)


def closed() -> None:
    os.closerange(0, 3)


LOST = "efface: the output cannot be written (No space left on device)\n"


@pytest.mark.parametrize(("output", "said"), [(full_disk, LOST), (full_disk_for_both, ""), (closed_pipe, "")])
def test_a_command_whose_output_is_all_that_it_gives_fails_without_it(output: Callable[[], None], said: str) -> None:
    done = run_efface(output, "bases")
    assert (done.returncode, done.stderr) == (1, said)


def test_what_is_written_to_streams_that_the_caller_closed_goes_nowhere() -> None:
    done = run_efface(closed, "bases")
    assert (done.returncode, done.stderr) == (0, "")


def in_fork(output: Callable[[], object], errors: Path, arguments: list[object]) -> None:
    """`run_efface` in a fork, which need not import anything; stderr goes to a file."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
    output()
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115
        except OSError:
            setattr(sys, name, None)  # as Python finds a stream that is closed
    sys.argv = ["efface", *map(str, arguments)]
    main()


@pytest.mark.usefixtures("finished")  # with it all is imported
@pytest.mark.parametrize("output", [full_disk, full_disk_for_both, closed_pipe, closed])
def test_a_run_does_not_depend_on_its_output(
    output: Callable[[], None], campaign_file: Callable[..., Path], tmp_path: Path
) -> None:
    errors, arguments = tmp_path / "errors", ["run", campaign_file(methods=[UCE]), "--out", tmp_path / "run"]
    forked = multiprocessing.get_context("fork").Process(
        target=in_fork, args=(output, errors, [*arguments, "--workers", 0])
    )
    forked.start()
    forked.join()
    assert forked.exitcode == 0, errors.read_text()
    assert (tmp_path / "run" / "table.parquet").is_file() and "Traceback" not in errors.read_text()
