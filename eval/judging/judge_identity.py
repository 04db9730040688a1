"""The identity of a judge that is not loaded: what a plan needs before any weights are in memory."""

from pathlib import Path

from efface.errors import UserError
from efface.eval.judging.judge_spec import read_judge
from efface.files import content_id
from efface.models.files.folder_identity import folder_content


def judge_identity(name_or_path: str | Path) -> str:
    """16 hex digits over the judge's YAML; of a model on this machine, over its files, and not where they lie.

    Raises UserError for an unknown judge, whatever is wrong in its YAML, and a model on this machine that is none.
    """
    spec = read_judge(name_or_path)
    data, weights = spec.as_json(), spec.config.weights
    if spec.config.identity:
        data["identity"] = spec.config.identity
    if weights is None:
        return content_id([data, {}])
    try:
        content = folder_content(weights.source)
    except UserError as error:
        raise UserError(f"{name_or_path}: {error}") from None
    if content is None:
        return content_id([data, {}])
    data.pop("source", None)
    return content_id([data, content])
