"""Exports and the miniature in the releases that papers' own code pins, and in today's: the same pictures."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from environments import TORCH, environment

from efface.miniature import MODEL
from efface.models.base import load_base
from efface.models.delta import Delta
from efface.models.export import export

OLD = ("diffusers==0.31.0", "transformers==4.46.3")

DRAW = """
import json, sys
import diffusers, numpy, torch, transformers
from diffusers import StableDiffusionPipeline

folder, out = sys.argv[1:]
pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
pipeline.set_progress_bar_config(disable=True)
noise = torch.Generator().manual_seed(0)
prompt = "A red cat, 2 dogs & the dog's 猫!"
numpy.save(out, pipeline(prompt, num_inference_steps=3, generator=noise, output_type="np").images)
versions = {"diffusers": diffusers.__version__, "transformers": transformers.__version__}
print(json.dumps({**versions, "tokens": pipeline.tokenizer(prompt + " <my-word>").input_ids}))
"""


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> str:
    return environment(tmp_path_factory.mktemp("old") / "env", TORCH, *OLD)


@pytest.fixture(params=["the miniature", "an export of it"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "the miniature":
        return MODEL
    base = load_base("miniature")
    base.tokenizer.add_tokens(["<my-word>"])
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight"
    export(base, Delta("weights", {name: -base.tensors()[name]}, {"base_id": base.fingerprint}), tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.slow
def test_old_and_new_releases_draw_the_same_from_it(old: str, folder: Path, tmp_path: Path) -> None:
    said, drawn = {}, {}
    for name, python in (("old", old), ("new", sys.executable)):
        command = [python, "-c", DRAW, str(folder), str(tmp_path / f"{name}.npy")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "newly initialized" not in done.stderr
        said[name] = json.loads(done.stdout.splitlines()[-1])
        drawn[name] = np.load(tmp_path / f"{name}.npy")
    assert [f"{package}=={said['old'][package]}" for package in ("diffusers", "transformers")] == list(OLD)
    assert said["old"]["tokens"] == said["new"]["tokens"]
    assert np.abs(drawn["old"] - drawn["new"]).max() < 1e-4
    assert drawn["old"].std() > 0.05
