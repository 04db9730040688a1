"""What makes a run again, for whoever reads its report: the command, what was requested, hashes, versions."""

import shlex
from collections.abc import Sequence
from contextlib import suppress

import pyarrow as pa

from efface.cluster.campaign.spec import DeltaEvaluation
from efface.cluster.storage.journal import DriverOpened, read_journal
from efface.cluster.storage.records import read_json
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.stored_plan import SEQUENTIAL
from efface.config_files import read_config
from efface.errors import StorageError, UserError
from efface.eval.calibration.calibration import Calibration
from efface.plain_files import leaves, read_plain

AGAIN = "again"
"""The folder in which the command makes the run again: its own holds all of it already."""


def provenance(folder: RunFolder, table: pa.Table, calibrations: list[Calibration]) -> dict[str, str]:
    """By what each is called."""
    found = {}
    if folder.campaign.is_file():
        found["the command that makes it again"] = shlex.join(["efface", "run", folder.campaign.name, "--out", AGAIN])
    elif folder.evaluation.is_file():
        found["the command that makes it again, in this folder"] = _evaluate_command(folder)
    for path in (folder.campaign, folder.evaluation):
        if path.is_file() and not leaves(path, folder.root):
            found[path.name] = read_plain(path).decode(errors="replace")
    for column, name in (("base_id", "base"), ("recipe_id", "recipe"), ("judge_version", "judge versions")):
        found[name] = "\n".join(sorted(set(table[column].to_pylist())))
    found["prompts (SHA-256)"] = "\n".join(sorted({calibration.prompts_sha256 for calibration in calibrations}))
    sign = read_json(folder.root, folder.sign.name) or {}
    found["efface"] = str(sign.get("efface", ""))
    found["versions"] = "\n".join(f"{name} {version}" for name, version in _packages(folder).items())
    return {name: value for name, value in found.items() if value}


def _packages(folder: RunFolder) -> dict[str, str]:
    """Versions that the last driver ran with; none where its journal is gone or of an earlier release."""
    found: dict[str, str] = {}
    with suppress(StorageError):
        for event in read_journal(folder):
            if isinstance(event, DriverOpened):
                found = event.packages
    return found


def _evaluate_command(folder: RunFolder) -> str:
    """The command that judges the same deltas again; nothing where what was requested cannot be read."""
    try:
        requested = read_config(DeltaEvaluation, folder.evaluation)
    except UserError:
        return ""
    return evaluate_command(requested, "jobs/*/delta.safetensors", AGAIN, until_of(folder))


def evaluate_command(requested: DeltaEvaluation, deltas: str, out: str, until: Sequence[str] = ()) -> str:
    """The command line that judges deltas (a pattern of the shell) as was requested."""
    options = {
        "--base": (requested.base,),
        "--concepts": (requested.concepts,),
        "--prompts": (requested.evaluation.prompts,),
        "--recipe": (requested.evaluation.recipe,),
        "--judge": requested.evaluation.judges,
        "--images-per-prompt": (str(requested.evaluation.images_per_prompt),),
        "--until": until,
        "--out": (out,),
    }
    given = [[name, value] for name, values in options.items() for value in values if value]
    return f"efface evaluate {deltas} {shlex.join(word for pair in given for word in pair)}"


def until_of(folder: RunFolder) -> list[str]:
    """What an evaluation that draws images look by look stops at, as `--until` takes it."""
    question = (read_json(folder.root, SEQUENTIAL) or {}).get("question")
    thresholds = question if isinstance(question, dict) else {}
    return [axis if threshold is None else f"{axis}={threshold}" for axis, threshold in thresholds.items()]
