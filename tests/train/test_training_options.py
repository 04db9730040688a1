"""How a job is run changes its delta by nothing but rounding; the precision, which changes more, is the job's."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from diffusers.models import attention_processor
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from quick_methods import QUICK
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from transformers.models.clip.modeling_clip import CLIPAttention
from two_processes import difference

from efface.concepts.concept import ConceptSet
from efface.config_files import parse
from efface.errors import UserError
from efface.models.base import Base, load_base
from efface.models.conditioning import Conditioning
from efface.models.delta import Delta
from efface.models.denoiser import Denoiser
from efface.models.noise_predictor import NoisePredictor
from efface.models.parameter_groups import select
from efface.models.shapes import ModelShapes
from efface.train.job import Job, make_job
from efface.train.method import (
    GradientConfig,
    GradientMethod,
    UnlearningTask,
    get_method,
    method_names,
    parse_config,
)
from efface.train.method_cost import Cost
from efface.train.run_job import run_job
from efface.train.trainer import options
from efface.train.trainer.loop import train
from efface.train.trainer.options import TrainingOptions
from efface.train.training_metrics import TrainingMetrics

QuickJob = Callable[..., Job]
GRADIENT = [name for name in method_names() if issubclass(get_method(name), GradientMethod)]
OF_DENOISER = [name for name in GRADIENT if get_method(name).network == "unet"]  # type: ignore[attr-defined]
WITHOUT_TEACHER = {"fmn", "mace"}
"""Methods whose batches take no pass without gradient."""
THROUGH_OTHERS = {"sgrace", "salun", "advunlearn", "aegis", "stereo"}
"""Methods that go back through networks which keep their activations: the frozen denoiser, for an adversary or a mask,
or models that are trained before the loop."""


@contextmanager
def blocks_counted() -> Iterator[Counter[bool]]:
    """How many times a transformer block is computed, with and without gradient."""
    count: Counter[bool] = Counter()

    def note(module: nn.Module, inputs: Any) -> None:
        if isinstance(module, (BasicTransformerBlock, CLIPAttention)):
            count[torch.is_grad_enabled()] += 1

    handle = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield count
    finally:
        handle.remove()


class Plain(NamedTuple):
    """What a method's quick job comes to by SGD, run as it is by default."""

    delta: Delta
    metrics: TrainingMetrics
    blocks: Counter[bool]


@pytest.fixture(scope="module")
def plain(tiny_base_folder: Path, concept_set: ConceptSet) -> Callable[[str], Plain]:
    """A function from a method to its quick job's result, done once for this module."""
    base = load_base(tiny_base_folder)

    @cache
    def run(name: str) -> Plain:
        config = {**QUICK.get(name, {}), "optimizer": "sgd"}
        job = make_job("tiny", base.fingerprint, name, concept_set, ["cat"], config=config)
        with blocks_counted() as blocks:
            return Plain(*run_job(job, base, concept_set), blocks)

    return run


@pytest.mark.parametrize("name", GRADIENT)
def test_gradient_checkpointing_computes_blocks_twice_and_gives_the_same_delta(
    name: str, quick_job: QuickJob, plain: Callable[[str], Plain], tiny_base: Base, concept_set: ConceptSet
) -> None:
    job, how = quick_job(name, optimizer="sgd"), TrainingOptions(gradient_checkpointing=True)
    once = plain(name).blocks
    with blocks_counted() as again:
        delta, _ = run_job(job, tiny_base, concept_set, training_options=how)
    assert again[False] == once[False]
    assert again[True] == 2 * once[True] or (name in THROUGH_OTHERS and again[True] > 1.1 * once[True])
    assert all(torch.equal(delta.tensors[key], value) for key, value in plain(name).delta.tensors.items())


def test_the_attention_requested_is_used_by_teacher_and_student_and_the_base_gets_its_own_back(
    quick_job: QuickJob, tiny_base: Base, concept_set: ConceptSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: Counter[str] = Counter()
    compute = AttnProcessor2_0.__call__

    def counted(self: Any, *args: Any, **options: Any) -> Tensor:
        used["sdpa"] += 1
        return compute(self, *args, **options)

    monkeypatch.setattr(AttnProcessor2_0, "__call__", counted)
    monkeypatch.setattr(AttnProcessor, "__call__", lambda *_, **__: pytest.fail("the base's own attention was used"))
    own = AttnProcessor()
    tiny_base.unet.set_attn_processor(own)
    _, metrics = run_job(quick_job("esd"), tiny_base, concept_set, training_options=TrainingOptions(attention="auto"))
    layers = len(tiny_base.unet.attn_processors)
    assert metrics.attention is not None and metrics.attention.model_dump() == {
        "requested": "auto",
        "used": "sdpa",
        "processors": {"AttnProcessor2_0": layers},
        "milliseconds": None,
    }
    assert used["sdpa"] > 0
    assert all(processor is own for processor in tiny_base.unet.attn_processors.values())


@pytest.mark.parametrize("name", OF_DENOISER)
def test_xformers_computes_a_jobs_attention_whatever_its_method_hung_on_the_unet(
    name: str,
    quick_job: QuickJob,
    plain: Callable[[str], Plain],
    tiny_base: Base,
    concept_set: ConceptSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """xformers as if it had a CPU kernel: the job gives the delta it gives without."""
    job = quick_job(name, optimizer="sgd")
    assert plain(name).metrics.attention is None
    computed: Counter[bool] = Counter()

    def attend(q: Tensor, k: Tensor, v: Tensor, attn_bias: None = None, op: None = None, scale: float = 1) -> Tensor:
        computed[torch.is_grad_enabled()] += 1
        return torch.softmax(q @ k.transpose(1, 2) * q.shape[-1] ** -0.5, dim=-1) @ v

    ops = SimpleNamespace(memory_efficient_attention=attend)
    monkeypatch.setattr(attention_processor, "xformers", SimpleNamespace(ops=ops))
    delta, metrics = run_job(job, tiny_base, concept_set, training_options=TrainingOptions(attention="xformers"))
    assert metrics.attention is not None and metrics.attention.processors == {
        "XFormersAttnProcessor": len(tiny_base.unet.attn_processors)
    }
    assert computed[True] and (computed[False] or name in WITHOUT_TEACHER)
    assert difference(delta, plain(name).delta, tiny_base) < 1e-3


class Recorded(GradientMethod):
    """Pulls the output's bias to 3, along its gradient (-4, -4, -4, -4) at 1; predicts once a step to see how."""

    group = "full"

    def __init__(self, fail: bool = False, **config: Any) -> None:
        super().__init__(GradientConfig(steps=2, learning_rate=0.1, optimizer="sgd", **config))
        self.fail = fail
        self.dtypes: list[tuple[torch.dtype, ...]] = []

    def cost(self, shapes: ModelShapes) -> Cost:
        return Cost(trained_rows=1)

    def prepare(self, task: UnlearningTask, student: Denoiser) -> None:
        self.student, self.teacher = student, task.base.unet

    def trained(self, student: Denoiser) -> dict[str, nn.Parameter]:
        return {"unet.conv_out.bias": student.module.conv_out.bias}

    def batch(self, index: int) -> Tensor:
        return self.student(torch.zeros(1, 4, 8, 8), 500, Conditioning(torch.zeros(1, 77, 16)))

    def loss(self, student: NoisePredictor, batch: Tensor) -> Tensor:
        if self.fail:
            raise RuntimeError("on the way")
        bias = self.student.module.conv_out.bias
        prediction = student(torch.zeros(1, 4, 8, 8), 500, Conditioning(torch.zeros(1, 77, 16)))
        self.dtypes.append(
            (self.student.module.conv_in.weight.dtype, self.teacher.conv_in.weight.dtype, bias.dtype, prediction.dtype)
        )
        return ((bias - 3) ** 2).sum() + 0 * prediction.sum()


@pytest.fixture
def task(tiny_base: Base, concept_set: ConceptSet) -> UnlearningTask:
    with torch.no_grad():
        tiny_base.unet.conv_out.bias.fill_(1.0)
    return UnlearningTask(tiny_base, concept_set.concepts[:1], concept_set, 0)


def test_in_bf16_the_frozen_weights_are_bf16_and_the_trained_ones_and_the_loss_fp32(task: UnlearningTask) -> None:
    method = Recorded(precision="bf16")
    tensors = train(method, task).tensors
    assert method.dtypes[0] == (torch.bfloat16, torch.bfloat16, torch.float32, torch.float32)
    # in bf16 1.4 would be 1.3984 and 1.72 be 1.7188
    torch.testing.assert_close(tensors["unet.conv_out.bias"], torch.full((4,), 1.72), rtol=1e-6, atol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_student_holds_nothing_twice_but_what_it_trains(precision: Any, tiny_base: Base) -> None:
    student, teacher = tiny_base.denoiser.copy(), tiny_base.denoiser
    trained = select(student.modules, "xattn")
    student.own(trained.values())
    with options.apply_training_options(TrainingOptions(), precision, teacher, student, list(trained.values())):
        theirs = {parameter.data_ptr() for parameter in teacher.module.parameters()}
        own = {name for name, value in student.module.named_parameters() if value.data_ptr() not in theirs}
    assert own == {name.removeprefix("unet.") for name in trained} != set()


@pytest.mark.parametrize("fail", [False, True])
def test_the_teacher_gets_its_fp32_weights_back_also_from_a_job_that_failed(fail: bool, task: UnlearningTask) -> None:
    before = {name: value.clone() for name, value in task.base.tensors().items()}
    try:
        train(Recorded(fail, precision="bf16"), task)
    except RuntimeError:
        assert fail
    assert all(torch.equal(value, before[name]) for name, value in task.base.tensors().items())
    output = task.base.unet(torch.zeros(1, 4, 8, 8), 1, torch.full((1, 77, 16), 1 / 3)).sample
    assert output.dtype == torch.float32 and not torch.equal(output, output.bfloat16().float())


def test_it_gets_them_back_where_memory_runs_out_as_they_are_cast(
    task: UnlearningTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: value.clone() for name, value in task.base.tensors().items()}
    really, half = options._to_bf16, []

    def lower(unet: Any, *rest: Any) -> None:
        really(unet, *rest)
        if unet is task.base.unet:
            half.append(unet.conv_in.weight.dtype)
            raise torch.OutOfMemoryError

    monkeypatch.setattr(options, "_to_bf16", lower)
    with pytest.raises(torch.OutOfMemoryError):
        train(Recorded(precision="bf16"), task)
    assert half == [torch.bfloat16]
    assert all(torch.equal(value, before[name]) for name, value in task.base.tensors().items())
    assert all(value.dtype == torch.float32 for value in task.base.tensors().values())


@pytest.mark.parametrize("name", GRADIENT)
def test_every_method_can_be_trained_in_bf16_to_nearly_the_same_delta(
    name: str, quick_job: QuickJob, plain: Callable[[str], Plain], tiny_base: Base, concept_set: ConceptSet
) -> None:
    # SGD: Adam's first steps follow the gradient's signs, however small it is.
    delta, _ = run_job(quick_job(name, optimizer="sgd", precision="bf16"), tiny_base, concept_set)
    assert all(value.dtype == torch.float32 for value in delta.tensors.values())
    # Some adversaries go by signs in any case, of which rounding turns some.
    assert 0 < difference(delta, plain(name).delta, tiny_base) < (0.3 if name in THROUGH_OTHERS else 0.1)


def test_the_precision_is_part_of_a_jobs_id(quick_job: QuickJob) -> None:
    assert quick_job("esd").config["precision"] == "fp32"
    assert quick_job("esd", precision="bf16").id != quick_job("esd").id
    with pytest.raises(UserError, match="precision"):
        parse_config("esd", {"precision": "fp16"})


def test_tensorboard_gets_loss_rate_and_gradient_norm_of_every_step(task: UnlearningTask, tmp_path: Path) -> None:
    train(
        Recorded(schedule="linear"),
        task,
        training_options=TrainingOptions(tracker="tensorboard", tracker_folder=tmp_path),
    )
    events = EventAccumulator(str(tmp_path / "training")).Reload()
    result = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    # loss 4 (b - 3)^2, gradient 2 (b - 3) in each of four; b = 1, then 1.4
    assert result["loss"] == [(1, pytest.approx(16)), (2, pytest.approx(4 * 1.6**2))]
    assert result["gradient_norm"] == [(1, pytest.approx(8)), (2, pytest.approx(6.4))]
    assert result["learning_rate"] == [(1, pytest.approx(0.1)), (2, pytest.approx(0.05))]


def test_nothing_is_logged_unless_requested(
    task: UnlearningTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train(Recorded(), task)
    assert list(tmp_path.iterdir()) == []


def test_a_setup_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'gradient_checkpointing'"):
        parse(TrainingOptions, {"gradient_checkpoint": True}, "training_options")
    with pytest.raises(UserError, match="tracker and tracker_folder go together"):
        parse(TrainingOptions, {"tracker": "tensorboard"}, "training_options")
