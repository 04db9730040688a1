"""efface from Python, in a script or a notebook: what the command line calls, with its options as arguments.

    import efface

    edited = efface.unlearn("uce", "cat")                  # a delta file, and what there is to say of it
    judged = efface.evaluate(edited, images_per_prompt=2)  # a run folder, with leaderboard and report
    pipe = efface.pipeline("miniature", edited)            # a stock diffusers pipeline
    pipe("a photo of a cat").images[0]

A function takes the options of the command of its name (`efface unlearn --help`), with underscores. Mistakes raise
`efface.errors.UserError`, with one sentence.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.files import local_path

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

    from efface.cluster.run_results import Results
    from efface.launch.commands.score import TableScores
    from efface.launch.commands.unlearn import Unlearned
    from efface.models.base import Base


def unlearn(method: str, concept: str | Sequence[str], **options: Any) -> "Unlearned":
    """Erase one concept, or several in one model; the result is a delta file. See `efface unlearn --help`.

    `config` and `training` are mappings: `unlearn("esd", "cat", config={"steps": 50})`.
    """
    from efface.launch.commands.unlearn import Unlearned, UnlearnOptions, run

    options = _settings(options, "config", "training")
    result = run(UnlearnOptions(method=method, concept=_listed(concept), **_paths(options, "out")))
    assert isinstance(result, Unlearned), "a job for torchrun is written by the command line"
    return result


def evaluate(deltas: Any, **options: Any) -> "Results":
    """Judge deltas (files, hub ids, or results of `unlearn`), and the base beside them. See `efface evaluate --help`.

    It is done in this process, unless `workers` says that Ray should start some.
    """
    from efface.launch.commands.evaluate import EvaluateOptions, run

    given = [deltas] if isinstance(deltas, str | Path) or hasattr(deltas, "path") else list(deltas)
    paths = [_delta_source(delta) for delta in given]
    settings: dict[str, Any] = {"workers": 0, **_paths(options, "out")}
    settings |= {key: _listed(options[key]) for key in ("judge", "concept") if key in options}
    return run(EvaluateOptions(deltas=paths, **settings))


def score(table: str | Path, **options: Any) -> "TableScores":
    """Every score of an image table or a run folder, recomputed. See `efface score --help`."""
    from efface.launch.commands.score import ScoreOptions, run

    return run(ScoreOptions(table=str(table), **options))


def load(base: str | Path, device: str = "auto", delta: Any = None) -> "Base":
    """A base in memory: a name of `efface bases`, a diffusers folder, a checkpoint or a hub id; with a delta in it.

    delta: a file, a result of `unlearn`, or a hub id. Raises UserError for a delta of another base.
    """
    from efface.launch.arguments.device import resolve_device
    from efface.models.base import load_base
    from efface.models.delta import Delta
    from efface.models.files.hub import find_delta

    loaded = load_base(str(base), resolve_device(device))
    if delta is not None:
        loaded.swap(Delta.load(find_delta(_delta_source(delta))))
    return loaded


def pipeline(base: "str | Path | Base", delta: Any = None, device: str = "auto") -> "StableDiffusionPipeline":
    """A stock diffusers pipeline of the base with the delta (see `load`) put into it.

    A base that is given in memory is shared with the pipeline, so the delta stays in it. Raises UserError for a delta
    of another base.
    """
    from efface.models.delta import Delta
    from efface.models.export import pipeline_of
    from efface.models.files.hub import find_delta

    if isinstance(base, str | Path):
        return pipeline_of(load(base, device, delta))
    base.swap(Delta.load(find_delta(_delta_source(delta))) if delta is not None else None)
    return pipeline_of(base)


def _delta_source(delta: Any) -> str:
    return str(getattr(delta, "path", delta))


def _listed(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _settings(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """The named mappings as the command line has them: lists of KEY=VALUE, the values in JSON, which is YAML too."""
    return {
        name: [f"{key}={json.dumps(one)}" for key, one in value.items()] if name in names else value
        for name, value in options.items()
    }


def _paths(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """The named ones as local paths."""
    return {
        name: local_path(value) if name in names and value is not None else value for name, value in options.items()
    }
