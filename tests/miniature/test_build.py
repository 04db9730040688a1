"""The build from nothing, in miniature of the miniature: every stage, a few pictures, two steps each."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoImageProcessor

from efface.miniature import MODEL
from efface.miniature.build import SMOKE, build, make
from efface.miniature.train_judge import masked_loss, new_judge
from efface.miniature.train_vae import new_vae, vae_loss
from efface.miniature.training import one_cycle, to_model_range, train
from efface.models.base import load_base
from efface.models.recipe import load_recipe
from efface.models.sampling.sampler import ImageRequest, sample


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict]:
    out, work = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("work")
    quick = load_recipe("miniature").model_copy(update={"steps": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("efface.miniature.measure.load_recipe", lambda _: quick)
        return out, work, build(out, work, torch.device("cpu"), SMOKE)


def test_a_build_leaves_a_base_that_samples_and_a_judge_that_reads(built: tuple[Path, Path, dict]) -> None:
    out, _, _ = built
    base, recipe = load_base(out / "model"), load_recipe("miniature").model_copy(update={"steps": 2})
    assert sample(base, recipe, [ImageRequest("a cat", 0)]).shape == (1, 64, 64, 3)
    assert list(AutoImageProcessor.from_pretrained(out / "judge").image_mean) == [0.5, 0.5, 0.5]


def test_a_build_has_the_files_and_names_that_are_shipped(built: tuple[Path, Path, dict]) -> None:
    def content(folder: Path) -> dict[str, list[str]]:
        weights = {path.name: path for path in folder.rglob("*.safetensors")}
        files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        return {"files": files, **{name: sorted(load_file(path)) for name, path in weights.items()}}

    assert content(built[0] / "model") == content(MODEL)
    for model in (built[0] / "model", MODEL):
        assert json.loads((model / "text_encoder" / "config.json").read_text())["dtype"] == "float32"


def test_a_build_writes_its_quality_and_a_card_that_shows_it(built: tuple[Path, Path, dict]) -> None:
    out, _, quality = built
    assert json.loads((out / "quality.json").read_text()) == quality
    card = (out / "CARD.md").read_text()
    assert all(f"| {name} |" in card for name in quality["concepts"])
    assert "{" not in card


def test_a_second_build_trains_nothing_again_and_gives_the_same_weights(built: tuple[Path, Path, dict]) -> None:
    out, work, _ = built
    before = {path: path.read_bytes() for path in out.glob("**/*.safetensors")}
    stamps = {path: path.stat().st_mtime_ns for path in work.glob("*/*.safetensors")}
    make(out, work, torch.device("cpu"), SMOKE)
    assert {path: path.read_bytes() for path in out.glob("**/*.safetensors")} == before
    assert {path: path.stat().st_mtime_ns for path in work.glob("*/*.safetensors")} == stamps


def test_training_resumed_from_a_checkpoint_ends_where_uninterrupted_training_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("efface.miniature.training.CHECKPOINT_EVERY", 3)

    def run(folder: Path, stop_at: int | None) -> torch.Tensor:
        torch.manual_seed(0)
        module = nn.Linear(3, 1)

        def loss_at(step: int) -> torch.Tensor:
            if step == stop_at:
                raise KeyboardInterrupt
            x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
            return (module(x) - x.sum(dim=1, keepdim=True)).square().mean()

        return train("t", module, loss_at, steps=8, peak=0.1, work=folder, average=0.9).weight.detach()

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = run(tmp_path / "a", None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", 5)
    assert torch.equal(run(tmp_path / "b", None), whole)


def test_the_learning_rate_rises_to_its_peak_and_falls_to_a_hundredth() -> None:
    rates = [one_cycle(step, 100, 2.0) for step in range(101)]
    assert max(rates) == 2.0 == rates[10] and rates[100] == pytest.approx(0.02)
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)


def test_unknown_labels_add_nothing_to_the_judges_loss() -> None:
    logits = torch.tensor([[2.0, -1.0], [0.0, 5.0]])
    labels = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    expected = (torch.nn.functional.softplus(torch.tensor([-2.0, -5.0]))).mean()
    assert torch.allclose(masked_loss(logits, labels), expected)


def test_the_judge_gives_one_logit_a_concept() -> None:
    judge = new_judge().eval()
    assert judge(torch.zeros(2, 3, 64, 64)).logits.shape == (2, len(judge.config.id2label))


def test_the_vae_makes_eight_by_eight_latents_of_64_px_and_its_loss_is_zero_only_for_a_perfect_copy() -> None:
    vae = new_vae()
    pictures = to_model_range(torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8).numpy())
    assert vae.encode(pictures).latent_dist.mean.shape == (2, 4, 8, 8)
    assert vae_loss(vae, pictures, torch.Generator().manual_seed(0)) > 0.5
