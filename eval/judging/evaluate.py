"""One model on a list of questions: sample the images, judge them, and write both down as rows."""

import hashlib
import io
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa
from PIL import Image

from efface.concepts.concept import ConceptSet
from efface.concepts.prompts import TARGET_AXES
from efface.eval.judge import Judge
from efface.eval.judging.eval_requests import EvalRequest
from efface.eval.judging.image_errors import image_errors
from efface.eval.judging.image_table import IMAGE_SCHEMA, SCHEMA
from efface.eval.judging.verdicts import verdicts
from efface.models.base import Base
from efface.models.recipe import Recipe
from efface.models.sampling.sampler import ImageRequest, SamplingCost, sample

ENCODERS = 4
"""Threads; a PNG of 512 px takes about a tenth of a second of one."""


def evaluate(
    base: Base,
    recipe: Recipe,
    eval_requests: Sequence[EvalRequest],
    judges: Sequence[Judge],
    concept_set: ConceptSet,
    *,
    model_id: str,
    method: str,
    on_batch: Callable[[int], None] | None = None,
    cost: SamplingCost | None = None,
) -> tuple[pa.Table, pa.Table]:
    """(verdicts, images) of `base` as it stands: with a delta swapped in, or without for the unedited model.

    verdicts: `table.SCHEMA`, rows by question, then ask, then judge. images: `table.IMAGE_SCHEMA`, one row
    per question. method: the label of the rows, "base" for the unedited model. What the images took is added to
    `cost`. Raises UserError before the first image where a judge does not know a concept.
    """
    requested = [tuple(dict.fromkeys(ask.asked_concept for ask in request.asks)) for request in eval_requests]
    for judge in judges:
        judge.check([concept_set.find(name) for name in dict.fromkeys(name for names in requested for name in names)])
    requests = [ImageRequest(request.prompt, request.seed) for request in eval_requests]
    not_finite: set[int] = set()
    encoded: list[Future[bytes]] = []
    with ThreadPoolExecutor(ENCODERS) as encoders:  # while the device makes the next batch

        def encode(batch: np.ndarray) -> None:
            encoded.extend(encoders.submit(png, image) for image in batch)

        images = sample(base, recipe, requests, on_batch, not_finite.add, cost, encode)
    errors = image_errors(images, not_finite)
    # One verdict per image, concept and judge, however many asks share it.
    pairs = [(i, name) for i, names in enumerate(requested) for name in names]
    concepts = [concept_set.find(name) for _, name in pairs]
    pictures, of_pictures = images[[i for i, _ in pairs]], [errors[i] for i, _ in pairs]
    found = [dict(zip(pairs, verdicts(judge, pictures, concepts, of_pictures), strict=True)) for judge in judges]
    hashes = [pixel_sha256(image) for image in images]
    rows = [
        {
            "model_id": model_id,
            "base_id": base.fingerprint,
            "method": method,
            "concept": ask.concept,
            "axis": ask.axis,
            "asked_concept": ask.asked_concept,
            "prompt": request.prompt,
            "prompt_id": ask.prompt_id,
            "seed": request.seed,
            "recipe_id": recipe.id,
            "judge": judge.name,
            "judge_version": judge.version,
            "present": verdict[i, ask.asked_concept].present,
            "score": None if verdict[i, ask.asked_concept].present is None else verdict[i, ask.asked_concept].score,
            "image_sha256": hashes[i],
            "image_error": errors[i],
            "held_out": None if ask.axis in TARGET_AXES else concept_set.find(ask.asked_concept).held_out,
        }
        for i, request in enumerate(eval_requests)
        for ask in request.asks
        for judge, verdict in zip(judges, found, strict=True)
    ]
    pngs = [
        {
            "image_sha256": hashes[i],
            "prompt": request.prompt,
            "seed": request.seed,
            "recipe_id": recipe.id,
            "png": encoded[i].result(),
        }
        for i, request in enumerate(eval_requests)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA), pa.Table.from_pylist(pngs, schema=IMAGE_SCHEMA)


def pixel_sha256(image: np.ndarray) -> str:
    """SHA-256 over height, width and pixels of a uint8 RGB image (H, W, 3): 64 hex digits."""
    shape = "x".join(map(str, image.shape))
    return hashlib.sha256(f"{shape} ".encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def png(image: np.ndarray) -> bytes:
    """A uint8 RGB image (H, W, 3) as PNG, which keeps every pixel."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()
