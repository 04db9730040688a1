"""The command lines that make a package again: its deltas, where each was made by itself, and what the run did."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from efface.cluster.campaign.spec import DeltaEvaluation
from efface.config_files import parse
from efface.errors import UserError
from efface.train.foreign_delta import is_foreign
from efface.train.job import Job
from efface.train.method import parse_config, preset_names


def unlearn_command(job_json: Mapping[str, Any], requested: DeltaEvaluation, out: str) -> str | None:
    """The command that made the delta of a job; None where another program did, or another efface whose method
    has other settings or another version. Of a later request of a chain it names the delta before as PREVIOUS.
    """
    try:
        job = parse(Job, dict(job_json), "the delta's job")
        if is_foreign(job):
            return None
        preset = job.base if job.base in preset_names(job.method) else None
        settings = parse_config(job.method, {}, preset).model_dump(mode="json")
        if parse_config(job.method, job.config).model_dump(mode="json") != job.config:
            return None
    except UserError:
        return None
    new = job.concepts[-1:] if job.parent else job.concepts
    options = [("-c", name) for name in new]
    options += [("--base", requested.base)] if requested.base != "miniature" else []
    options += [("--concepts", requested.concepts)] if requested.concepts else []
    options += [
        ("--set", f"{key}={json.dumps(value)}") for key, value in job.config.items() if settings.get(key) != value
    ]
    options += [("--seed", str(job.seed))] if job.seed else []
    options += [("--after", "PREVIOUS")] if job.parent else []
    return shlex.join(
        ["efface", "unlearn", job.method, *(word for pair in (*options, ("--out", out)) for word in pair)]
    )
