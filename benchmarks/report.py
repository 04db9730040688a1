"""How large the report of a large campaign is, how long it takes to write, and how long a browser takes to show it.

    python -m benchmarks.report                     100 models x 500 images: 5 methods, 20 concepts
    python -m benchmarks.report --models 10 --json

The run is made up: verdicts drawn at random, images of coloured shapes, two thousand different ones. A page counts as
shown when its tables and the first images stand there and the browser has drawn a frame; figures follow. Without
Chromium nothing is timed. On a busy machine the seconds say little, and the processor seconds how many an idle one
would take at most.
"""

import argparse
import io
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from PIL import Image, ImageDraw

from benchmarks.record import write_result
from efface.concepts.prompts import AXES, TARGET_AXES
from efface.eval.judging.image_table import SCHEMA
from efface.eval.report.reported_run import ReportedModel, RunContent
from efface.eval.report.write import write_report
from efface.eval.scores.leaderboard import leaderboard
from efface.eval.scores.scoring import BASE, score_table
from efface.eval.weight_change_values import LayerChange

SHOWN = """(() => {
  const done = () => setTimeout(() => { window.shown = performance.now(); });
  const look = () => requestAnimationFrame(document.querySelector("#strip-0 tbody .thumb") ? done : look);
  look();
})()"""
"""Notes the milliseconds since a page was asked for, after the frame in which its images are."""

METHODS, PROMPTS, SEEDS, SIDE = 5, 10, 10, 128
PICTURES = 2000


def made_up_run(models: int) -> RunContent:
    """So many models, rounded up to a multiple of `METHODS`, of 500 images each, beside the base."""
    generator = random.Random(0)
    concepts = [f"concept {i}" for i in range(-(-models // METHODS))]
    labels = [f"method-{i}" for i in range(METHODS)]
    rows = []
    for label in (BASE, *labels):
        good = 0.95 if label == BASE else generator.uniform(0.4, 0.95)
        for concept in concepts:
            for axis in AXES:
                is_target = axis in TARGET_AXES
                shown = good if label == BASE or not is_target else 1 - good
                for prompt in range(PROMPTS):
                    for seed in range(SEEDS):
                        rows.append(_row(label, concept, axis, prompt, seed, generator.random() < shown))
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    scores = {label: score_table(table, method=label) for label in labels}
    trained = tuple(
        ReportedModel(
            id=f"{label} {concept}",
            label=label,
            method="esd",
            name=f"{label}-{concept}",
            concepts=(concept,),
            seed=0,
            config={"steps": 1000, "learning_rate": 1e-5},
            seconds=600.0,
            device="a GPU",
            losses=tuple(generator.random() for _ in range(1000)),
            changes={"xattn": 1e-3, "full": 1e-4},
            layers={f"unet.down_blocks.{i}.attentions.{j}": LayerChange(1.0, 1e-3) for i in range(3) for j in range(2)},
        )
        for label in labels
        for concept in concepts
    )
    return RunContent(
        name="made-up",
        path="made-up",
        table=table,
        judge="judge",
        rows=tuple(leaderboard(scores, {}, {label: 600.0 * len(concepts) for label in labels})),
        scores=scores,
        stages={},
        models=trained,
        calibrations=(),
        images=lambda: _images(table),
    )


def _row(label: str, concept: str, axis: str, prompt: int, seed: int, present: bool) -> dict[str, Any]:
    asked = concept if axis in TARGET_AXES else f"neighbour of {concept}"
    return {
        "model_id": label if label == BASE else f"{label} {concept}",
        "base_id": "b",
        "method": label,
        "concept": concept,
        "axis": axis,
        "asked_concept": asked,
        "prompt": f"a photo of {asked} on {axis}, number {prompt}, in the middle of a long sentence",
        "prompt_id": f"{axis} {asked} {prompt}",
        "seed": seed,
        "recipe_id": "r",
        "judge": "judge",
        "judge_version": "1",
        "present": present,
        "score": round(random.Random(f"{label}{concept}{axis}{prompt}{seed}").random(), 4),
        "image_sha256": f"{label} {concept} {axis} {prompt} {seed}",
        "image_error": None,
    }


def _images(table: pa.Table) -> Iterator[tuple[str, bytes]]:
    pictures = [_picture(i) for i in range(PICTURES)]
    for number, sha in enumerate(dict.fromkeys(table["image_sha256"].to_pylist())):
        yield sha, pictures[number % PICTURES]


def _picture(number: int) -> bytes:
    """Overlapping ellipses: edges and areas, as in a drawing."""
    generator = random.Random(number)
    image = Image.new("RGB", (SIDE, SIDE), _colour(generator))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = generator.randrange(SIDE), generator.randrange(SIDE)
        draw.ellipse((x, y, x + generator.randrange(8, 60), y + generator.randrange(8, 60)), fill=_colour(generator))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _colour(generator: random.Random) -> tuple[int, int, int]:
    return generator.randrange(256), generator.randrange(256), generator.randrange(256)


class Shown(NamedTuple):
    """What it took until a page was shown."""

    seconds: float
    processor_seconds: float
    """Of all processes of the browser, of which several work at once."""


def time_to_show(path: Path) -> Shown | None:
    """In headless Chromium, with a cold cache; None where there is none."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if chromium is None:
        return None
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.add_init_script(SHOWN)
        session = browser.new_browser_cdp_session()

        def busy() -> float:
            return sum(float(one["cpuTime"]) for one in session.send("SystemInfo.getProcessInfo")["processInfo"])

        before = busy()
        page.goto(path.as_uri(), wait_until="commit")
        while not (milliseconds := page.evaluate("window.shown")):
            time.sleep(0.02)
        shown = Shown(float(milliseconds) / 1000, busy() - before)
        browser.close()
    return shown


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--out", type=Path, help="keep the report here")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/report.json")
    given = parser.parse_args()
    run = made_up_run(given.models)
    with tempfile.TemporaryDirectory() as folder:
        path = given.out or Path(folder) / "report.html"
        start, busy = time.perf_counter(), time.process_time()
        write_report([run], path)
        found: dict[str, Any] = {
            "models": len(run.models),
            "images": run.table.num_rows,
            "megabytes": path.stat().st_size / 1e6,
            "seconds_to_write": time.perf_counter() - start,
            "processor_seconds_to_write": time.process_time() - busy,
        }
        shown = [one for one in (time_to_show(path.absolute()) for _ in range(3)) if one]
        found["seconds_to_show"] = [one.seconds for one in shown]
        found["processor_seconds_to_show"] = [one.processor_seconds for one in shown]
    print(json.dumps(found, indent=None if given.json else 2))
    if given.record:
        write_result("report", found, load=os.getloadavg())


if __name__ == "__main__":
    main()
