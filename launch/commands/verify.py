"""`efface verify`: whether a package is whole, and its models make the images that it shows."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from efface.launch.arguments.options import LOCAL, DeviceOption
from efface.launch.command import Command
from efface.launch.terminal.progress_bar import progress_bar
from efface.launch.terminal.tables import print_line

if TYPE_CHECKING:
    from efface.cluster.package.verify import Verification


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Check a package: the hash of every file, and one image of each model, made again from the base and its delta."""

    package: Annotated[Path, typer.Argument(help="A folder that `efface package` wrote.", **LOCAL)]
    base: Annotated[
        str | None, typer.Option("--base", "-b", help="The base, where it is not one of `efface bases`.")
    ] = None
    device: DeviceOption = "auto"


def run(options: VerifyOptions) -> "Verification":
    """Raises UserError where there is no package, or its base is not at hand."""
    from efface.cluster.package.verify import verify_package
    from efface.launch.arguments.device import resolve_device

    with progress_bar() as on_progress:
        return verify_package(options.package, options.base, resolve_device(options.device), on_progress)


def show(verification: "Verification") -> None:
    for name in verification.changed:
        print_line(f"{name}: is not as it was packaged")
    for name in verification.added:
        python = " (Python keeps there what it compiled)" if "__pycache__" in name.split("/") else ""
        print_line(f"{name}: was not packaged{python}; delete it")
    for check in verification.samples:
        said = "the same to the last bit" if check.is_exact else f"differs by {check.difference:.2f} grey levels of 255"
        print_line(f"{check.model}: {said}{'' if check.is_same else ', which is not the same image'}")
    verdict = "as it was packaged" if verification.is_good else "NOT as it was packaged"
    count = len(verification.samples)
    print_line(f"{verification.files} files, {count} image{'s' * (count != 1)} made again: {verdict}")


COMMAND = Command(
    "verify", VerifyOptions, run, show, as_json=asdict, exit_code=lambda verification: int(not verification.is_good)
)
