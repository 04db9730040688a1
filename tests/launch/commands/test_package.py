"""`efface package`: what is handed in is whole, and loads without efface."""

import contextlib
import csv
import importlib.metadata
import json
import shlex
import shutil
import subprocess
import sys
from importlib.metadata._meta import SimplePath
from pathlib import Path

import numpy as np
import pytest
import torch
from command import RunEfface
from diffusers import StableDiffusionPipeline
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from safetensors.torch import load_file
from tiny_campaign import campaign_dict, write_yaml

from efface import __version__
from efface.cluster.campaign.planner import plan_campaign
from efface.cluster.campaign.spec import DeltaEvaluation, read_campaign
from efface.cluster.package.commands import unlearn_command
from efface.cluster.package.environment import requirements, source_of_code
from efface.concepts.concept import load_concept_set
from efface.launch.arguments.job_request import read_request
from efface.launch.arguments.key_values import parse_key_values
from efface.models.base import base_id, load_base, read_base
from efface.models.delta import Delta
from efface.models.recipe import Recipe
from efface.models.sampling.sampler import ImageRequest, sample
from efface.train.job import make_job


def test_everything_that_the_challenge_asks_for_is_there(package: Path) -> None:
    files = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    assert {
        *("README.md", "manifest.json", "package.json", "campaign.yaml", "environment.txt", "load_delta.py"),
        *("scores.csv", "report.html", "deltas/cat.safetensors", "samples/cat.png"),
        *("evaluation/table.parquet", "evaluation/table.csv", "evaluation/prompts.csv", "evaluation/recipe.yaml"),
        *("models/fp32/cat/model_index.json", "models/fp16/cat/model_index.json"),
    } <= files
    readme = (package / "README.md").read_text()
    assert "| cat | cat | 0 | `deltas/cat.safetensors` |" in readme and "the challenge's tie-break" in readme
    assert "CreativeML Open RAIL-M" in readme and "efface verify ." in readme and "| uce | 1 |" in readme
    assert "pip install --no-deps EFFACE" in readme and f"This package was made with efface {__version__}" in readme
    assert "efface run campaign.yaml --out runs/again" in readme
    axes = {line["axis"] for line in csv.DictReader((package / "scores.csv").open()) if line["concept"] == "cat"}
    assert axes == {"forget", "indirect", "adversarial", "adjacent", "retain", "retain_shown", "err"}


def test_the_environment_is_one_that_pip_can_install(package: Path) -> None:
    """Each line but comments and indexes is a requirement; a build that only PyTorch's index has, needs its line."""
    lines = (package / "environment.txt").read_text().splitlines()
    indexes = [line.removeprefix("--extra-index-url ") for line in lines if line.startswith("--extra-index-url ")]
    found = [Requirement(line) for line in lines if not line.startswith(("#", "--extra-index-url "))]
    names = {canonicalize_name(one.name) for one in found}
    assert "efface" not in names and {"torch", "diffusers", "safetensors"} <= names and len(names) == len(found)
    for one in found:
        (pin,) = one.specifier
        version, installed = Version(pin.version), Version(importlib.metadata.version(one.name))
        assert pin.operator == "==" and version.public == installed.public
        if version.local:
            assert f"https://download.pytorch.org/whl/{version.local}" in indexes


class Installed(importlib.metadata.Distribution):
    """A distribution with this metadata."""

    def __init__(self, name: str, version: str, origin: object = None, site: Path = Path("/site-packages")) -> None:
        self.site = site
        self.texts = {"METADATA": f"Name: {name}\nVersion: {version}\n", "direct_url.json": json.dumps(origin)}

    def read_text(self, filename: str) -> str | None:
        return self.texts.get(filename)

    def locate_file(self, path: object) -> SimplePath:
        return self.site / str(path)


def test_what_no_index_has_is_left_out_of_what_pip_reads_or_named_by_its_commit() -> None:
    vcs = {"vcs": "git", "commit_id": "c0ffee"}
    first, *lines = requirements(
        [
            Installed("torch", "2.13.0+cu130"),
            Installed("numpy", "2.3.1"),
            Installed("mine", "0.2", {"url": "file:///home/me/mine", "dir_info": {"editable": True}}),
            Installed("theirs", "1.0", {"url": "https://me:secret@host.example/theirs.git", "vcs_info": vcs}),
            Installed("wheel_of", "3", {"url": "file:///tmp/w-3.whl", "archive_info": {"hashes": {"sha256": "ab"}}}),
            Installed("built", "1.5+deb1"),
            Installed("efface", "0.1.0"),
        ]
    )
    assert first.startswith("# Python 3.")
    assert lines == [
        "--extra-index-url https://download.pytorch.org/whl/cu130",
        "built==1.5",
        "# mine 0.2: installed from a folder",
        "numpy==2.3.1",
        "theirs @ git+https://host.example/theirs.git@c0ffee",
        "torch==2.13.0+cu130",
        "# wheel_of 3: installed from w-3.whl (SHA-256 ab)",
    ]


def test_of_two_of_one_name_the_first_counts_which_python_imports() -> None:
    """setuptools, once imported, puts copies of its own dependencies at the end of the path."""
    _, *lines = requirements([Installed("importlib_metadata", "10.2.0"), Installed("importlib-metadata", "8.7.1")])
    assert lines == ["importlib_metadata==10.2.0"]


def test_the_source_is_of_the_code_that_runs_and_never_a_path_of_this_machine(tmp_path: Path) -> None:
    """Whatever else is installed: a commit, what pip had it from, or unknown."""
    code = tmp_path / "checkout" / "efface"
    code.mkdir(parents=True)
    elsewhere = {"url": (tmp_path / "other").as_uri(), "dir_info": {"editable": True}}
    named = f"efface {__version__}"
    other = Installed("efface", "0.0.1", elsewhere)
    assert source_of_code(code, other) == source_of_code(code, None) == f"{named}, commit unknown"
    git = ["git", "-C", str(code.parent), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    (code / "a.py").write_text("1")
    for arguments in (["init", "-q"], ["add", "efface"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    commit = next((code.parent / ".git" / "refs" / "heads").iterdir()).read_text().strip()
    assert source_of_code(code, other) == f"{named}, commit {commit}"
    (code / "a.py").write_text("2")
    assert source_of_code(code, other) == f"{named}, commit {commit} with changes"
    site = tmp_path / "site-packages"
    wheel = {"url": "file:///home/me/efface-0.1.0-py3-none-any.whl", "archive_info": {"hash": "sha256=ab"}}
    expected = f"{named}, installed from efface-0.1.0-py3-none-any.whl (SHA-256 ab)"
    assert source_of_code(site / "efface", Installed("efface", "0.1.0", wheel, site)) == expected
    vcs = {"url": "https://host.example/efface.git", "vcs_info": {"vcs": "git", "commit_id": "c0ffee"}}
    from_git = source_of_code(site / "efface", Installed("efface", "0.1.0", vcs, site))
    assert from_git == f"{named}, commit git+https://host.example/efface.git@c0ffee"


def test_what_is_missing_of_a_run_is_said_where_it_is_packaged(
    efface: RunEfface, finished: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    next(run.rglob("*.images.parquet")).write_bytes(b"")
    packaged = efface("package", run, "--out", tmp_path / "package", "--weights", "none")
    said = [line for line in packaged.out.splitlines() if line.startswith("note: ")]
    assert packaged.code == 0 and any("images.parquet: is not as it was written" in line for line in said)
    problems = json.loads((tmp_path / "package" / "package.json").read_text())["problems"]
    assert [f"note: {problem}" for problem in problems] == said


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_stock_diffusers_loads_a_folder_without_arguments_with_the_edited_weights(
    package: Path, base: str, dtype: str
) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(package / "models" / dtype / "cat")
    loaded = load_base(base)
    edited = Delta.load(package / "deltas" / "cat.safetensors").edited(loaded)
    weights = dict(pipeline.unet.named_parameters())
    stored = load_file(package / "models" / dtype / "cat" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32 if dtype == "fp32" else torch.float16}
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    for name, value in edited.items():
        expected = value if dtype == "fp32" else value.half().float()
        assert torch.equal(weights[name.removeprefix("unet.")], expected)


@pytest.mark.parametrize(("dtype", "levels"), [("fp32", 1), ("fp16", 4)])
def test_stock_diffusers_draws_what_efface_draws_from_the_same_noise(
    package: Path, base: str, dtype: str, levels: int
) -> None:
    """With the scheduler that is in the folder; weights kept in fp16 are rounded."""
    pipe = StableDiffusionPipeline.from_pretrained(package / "models" / dtype / "cat")
    pipe.set_progress_bar_config(disable=True)
    size, steps, guidance, noise = 16, 4, 5.0, torch.Generator().manual_seed(7)
    (theirs,) = pipe(
        "a cat",
        height=size,
        width=size,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=noise,
        output_type="np",
    ).images
    loaded = load_base(base)
    loaded.swap(Delta.load(package / "deltas" / "cat.safetensors"))
    recipe = Recipe(name="t", scheduler="pndm", steps=steps, guidance_scale=guidance, height=size, width=size)
    (ours,) = sample(loaded, recipe, [ImageRequest("a cat", 7)])
    loaded.swap(None)
    (unedited,) = sample(loaded, recipe, [ImageRequest("a cat", 7)])
    assert np.abs(theirs * 255 - ours).max() <= levels < np.abs(theirs * 255 - unedited).max()


def test_the_loader_needs_only_diffusers_and_gives_the_same_weights(package: Path, tmp_path: Path) -> None:
    """In a process of its own, in which `efface` cannot be imported."""
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import sys
sys.modules["efface"] = None
sys.path.insert(0, {str(package)!r})
from diffusers import StableDiffusionPipeline
from load_delta import apply_delta
expected = StableDiffusionPipeline.from_pretrained({str(package / "models" / "fp32" / "cat")!r})
pipe = StableDiffusionPipeline.from_pretrained({str(package / "models" / "fp32" / "cat")!r})
for weight in pipe.unet.parameters():
    weight.requires_grad_(False)
before = {{name: weight.clone() for name, weight in pipe.unet.named_parameters()}}
changed = next(name for name in before if "attn2.to_k" in name)
dict(pipe.unet.named_parameters())[changed].zero_()
apply_delta(pipe, {str(package / "deltas" / "cat.safetensors")!r})
assert all((weight == before[name]).all() for name, weight in pipe.unet.named_parameters())
"""
    )
    done = subprocess.run([sys.executable, "-B", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loader = (package / "load_delta.py").read_text().partition("@torch")[2].partition("if __name__")[0]
    assert sum(bool(line.strip()) for line in loader.splitlines()) <= 20


def test_the_loader_merges_an_adapter(package: Path, tmp_path: Path) -> None:
    import runpy

    from safetensors.torch import save_file

    folder = package / "models" / "fp32" / "cat"
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    name = next(n for n, w in pipe.unet.named_parameters() if n.endswith("attn2.to_q.weight"))
    before = dict(pipe.unet.named_parameters())[name].detach().clone()
    up, down = torch.ones(before.shape[0], 2), torch.full((2, before.shape[1]), 0.5)
    module = f"unet.{name.removesuffix('.weight')}"
    save_file(
        {f"{module}.up": up, f"{module}.down": down, f"{module}.alpha": torch.tensor(1.0)},
        tmp_path / "adapter.safetensors",
    )
    runpy.run_path(str(package / "load_delta.py"))["apply_delta"](pipe, str(tmp_path / "adapter.safetensors"))
    torch.testing.assert_close(dict(pipe.unet.named_parameters())[name].detach(), before + 0.5)


def test_the_loader_refuses_what_acts_while_an_image_is_made(package: Path, tmp_path: Path) -> None:
    import runpy

    path = tmp_path / "hook.safetensors"
    Delta("hook", {}, {"base_id": "x", "hook": {"name": "sld"}}).save(path)
    with pytest.raises(ValueError, match="changes no weight"):
        runpy.run_path(str(package / "load_delta.py"))["apply_delta"](None, str(path))


def test_a_delta_that_was_judged_by_itself_is_packaged_too(
    efface: RunEfface, finished: Path, base: str, tmp_path: Path
) -> None:
    (delta,) = (finished / "jobs").glob("*/delta.safetensors")
    run, out = tmp_path / "run", tmp_path / "package"
    judged = efface("evaluate", delta, "--base", base, "--images-per-prompt", 1, "--out", run, "--workers", 0)
    assert judged.code == 0, judged.err
    assert efface("package", run, "--out", out, "--weights", "none").code == 0
    assert (out / "deltas" / "cat.safetensors").read_bytes() == delta.read_bytes()
    lines = (out / "README.md").read_text().splitlines()
    again = next(line for line in lines if line.startswith("efface evaluate"))
    assert "deltas/*.safetensors" in again and "--images-per-prompt 1 --out runs/again" in again
    assert "# uce: cat" in lines and any(line.startswith("- name: 'uce: cat'") for line in lines)
    assert "- 1 model trained before this run, which was given the delta: neither device nor time is known" in lines
    assert any(line.startswith("- 20 images made and judged on cpu") for line in lines)
    made = next(line for line in lines if line.startswith("efface unlearn uce "))
    (out / "deltas" / "cat.safetensors").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(out)
        assert efface(*shlex.split(made)[1:]).code == 0
    assert (out / "deltas" / "cat.safetensors").read_bytes() == delta.read_bytes()
    assert efface("verify", out, "--base", base, "--device", "cpu").code == 0
    pushed = efface("push", delta, "me/cat", "--run", run, "--base", base)
    assert pushed.code == 0 and "| cat |" in pushed.out and "It was not judged" not in pushed.out


def test_the_command_of_a_delta_makes_its_job_again_whatever_was_set(base: str, tmp_path: Path) -> None:
    """And there is none for what efface did not make."""
    spec = read_base(base)
    concepts = load_concept_set(spec.concepts)
    settings = {"steps": 7, "learning_rate": 3e-4, "variant": "u"}
    job = make_job(spec.name, base_id(spec), "esd", concepts, ["cat"], config=settings, seed=3)
    command = unlearn_command(job.model_dump(mode="json"), DeltaEvaluation(base=base), "cat.safetensors")
    assert command is not None
    words = shlex.split(command)
    given = dict(zip(words[3::2], words[4::2], strict=True))
    assert words[:3] == ["efface", "unlearn", "esd"] and given["--base"] == base and given["-c"] == "cat"
    chosen = [value for key, value in zip(words[3::2], words[4::2], strict=True) if key == "--set"]
    assert sorted(key.partition("=")[0] for key in chosen) == sorted(settings)
    again = read_request(
        "esd",
        ["cat"],
        base=base,
        concepts=None,
        preset=None,
        config=parse_key_values(chosen),
        seed=int(given["--seed"]),
        after=None,
    )
    assert again.job.id == job.id
    foreign = {**job.model_dump(mode="json"), "method": "theirs", "config": {"weights": "ab"}}
    assert unlearn_command(foreign, DeltaEvaluation(base=base), "cat.safetensors") is None


@pytest.mark.parametrize(
    ("strategy", "made"),
    [
        pytest.param("single", [["cat"], ["bus"]], marks=pytest.mark.slow),
        pytest.param("multi", [["cat", "bus"]], marks=pytest.mark.slow),
        ("continual", [["cat", "bus"]]),
    ],
)
def test_each_kind_of_challenge_model_is_packaged_loads_and_is_verified(
    efface: RunEfface,
    campaign_inputs: Path,
    base: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    strategy: str,
    made: list[list[str]],
) -> None:
    """Of a chain the last model, which has forgotten all of its requests."""
    own = {key: str(campaign_inputs / name) for key, name in (("recipe", "recipe.yaml"), ("prompts", "prompts.csv"))}
    concepts = {"targets": ["cat", "bus"], "set": str(campaign_inputs / "concepts.yaml")}
    requested = {"methods": [{"method": "uce"}], "strategy": strategy, "concepts": concepts}
    limits = {"forget": 1, "adjacent": 1, "retain": 1}
    evaluation = {"images_per_prompt": 1, "prompts_per_concept": limits, **own}
    campaign = write_yaml(tmp_path / "c.yaml", campaign_dict(campaign_inputs, **requested, evaluation=evaluation))
    run, out = tmp_path / "run", tmp_path / "package"
    assert efface("run", campaign, "--out", run, "--workers", 0).code == 0
    packaged = efface("package", run, "--out", out, "--weights", "fp32")
    assert packaged.code == 0, packaged.err
    models = json.loads((out / "package.json").read_text())["models"]
    assert sorted(model["concepts"] for model in models) == sorted(made)
    for model in models:
        pipe = StableDiffusionPipeline.from_pretrained(out / model["folders"]["fp32"])
        loaded = load_base(base)
        loaded.swap(Delta.load(out / model["delta"]))
        weights = dict(loaded.unet.named_parameters())
        assert all(torch.equal(weight, weights[name]) for name, weight in pipe.unet.named_parameters())
    verified = efface("verify", out, "--base", base, "--device", "cpu")
    assert verified.code == 0 and "made again: as it was packaged" in verified.out
    assert verified.out.count("the same to the last bit") == len(made)
    monkeypatch.chdir(out)  # where recipe, prompts and concepts are the package's own
    again, before = (plan_campaign(read_campaign(path)) for path in ("campaign.yaml", campaign))
    assert str(campaign_inputs / "recipe.yaml") not in Path("campaign.yaml").read_text()
    assert {task.id for task in again.tasks} == {task.id for task in before.tasks}


def test_a_method_without_weights_is_packaged_without_a_loader_of_weights(
    efface: RunEfface, campaign_inputs: Path, tmp_path: Path
) -> None:
    evaluation = {"images_per_prompt": 1, "prompts_per_concept": {"adjacent": 1, "retain": 1}}
    hooks = campaign_dict(campaign_inputs, methods=[{"method": "negative-prompt"}], evaluation=evaluation)
    campaign = write_yaml(tmp_path / "campaign.yaml", hooks)
    assert efface("run", campaign, "--out", tmp_path / "run", "--workers", 0).code == 0
    refused = efface("package", tmp_path / "run", "--out", tmp_path / "package")
    assert "--weights none" in refused.error_message and not (tmp_path / "package").exists()
    assert efface("package", tmp_path / "run", "--out", tmp_path / "package", "--weights", "none").code == 0
    assert not (tmp_path / "package" / "load_delta.py").exists()
    assert "load_delta.py" not in (tmp_path / "package" / "README.md").read_text()


def test_it_says_how_far_it_is(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from efface.launch.commands.package import PackageOptions, run

    seen: list[tuple[str, int, int]] = []
    bar = contextlib.nullcontext(lambda *far: seen.append(far))
    monkeypatch.setattr("efface.launch.commands.package.progress_bar", lambda: bar)
    run(PackageOptions(run=str(finished), out=tmp_path / "package", weights=["none"]))
    files = len(json.loads((tmp_path / "package" / "manifest.json").read_text()))
    assert seen == [("models", 0, 1), ("models", 1, 1), *(("files hashed", i, files) for i in range(files + 1))]


def test_what_cannot_be_packaged_is_one_sentence(
    efface: RunEfface, finished: Path, package: Path, tmp_path: Path
) -> None:
    assert "exists already" in efface("package", finished, "--out", package).error_message
    assert "--method esd" in efface("package", finished, "--out", tmp_path / "p", "--method", "esd").error_message
    assert "--weights" in efface("package", finished, "--out", tmp_path / "p", "--weights", "int8").error_message
    assert not (tmp_path / "p").exists()
