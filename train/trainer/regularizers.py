"""What a job may add to any method that trains: the shape of its loss, and bounds on what changes.

    loss_shape       hellinger: 1 - exp(-L / s), whose gradient fades where L is large (f-DMU, arXiv 2509.21167)
    near_start       + w mean |theta - theta_0|, or w mean (theta - theta_0)^2, to the weights the job starts from:
                     in a chain those of the request before (CUIG, arXiv 2511.07970); theta are a model's weights, so
                     that of adapters it is what they add to these that counts
    select           only some entries of the trained weights are trained (`train/trainer/weight_mask.py`)
    replay           + w times the squared change of what is predicted for concepts that stay (`replay.py`)
    protect          keys and values of the cross-attention change by Delta P alone, P = I - V V^T, V an orthonormal
                     basis of the protected prompts' mean token embeddings (CUIG's projection)

The authors of the last project the gradient, which AdamW then bends again: by scaling each entry, by momentum, by
weight decay. Here the realised change is projected, after each step, so that it does not act on what is protected.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from efface.errors import UserError
from efface.models.adapters import Adapters
from efface.models.network import Network
from efface.models.text.text_encoding import encode_prompts, last_subject_token
from efface.train.adapter_method import AdapterMethod
from efface.train.method import GradientMethod, TrainingConfig, UnlearningTask
from efface.train.trainer.options import TrainingOptions
from efface.train.trainer.replay import Replay
from efface.train.trainer.weight_mask import keep_selected, selected_entries

SMALLEST_SINGULAR_VALUE = 1e-6  # of the largest: what is smaller is rounding


class Regularizers:
    """Those of one job, between the loop and its method."""

    def __init__(
        self,
        method: GradientMethod,
        task: UnlearningTask,
        student: Network,
        trained: Mapping[str, nn.Parameter],
        options: TrainingOptions,
    ) -> None:
        """trained: at its start. Raises UserError where they do not fit the method, or DeepSpeed holds the weights."""
        config: TrainingConfig = method.config
        self.config, self.trained = config, dict(trained)
        self.replay = self._replay(method, task) if config.replay_weight > 0 else None
        if not (config.near_start_weight > 0 or config.select != "all" or config.protect != "none"):
            self.start: dict[str, Tensor] = {}
            self.masks: dict[str, Tensor] = {}
            self.projections: dict[str, Tensor] = {}
            return
        if options.deepspeed is not None:
            raise UserError(
                f"method '{method.name}': near_start, select and protect need whole weights, and DeepSpeed keeps parts "
                "of them: leave out training.deepspeed"
            )
        if config.protect != "none" and config.select != "all":
            raise UserError(
                f"method '{method.name}': protect and select exclude each other, as entries that are put back undo the "
                "projection: leave one out"
            )
        self.start = {name: value.detach().clone() for name, value in self.trained.items()}
        self.adapters = self._adapters(method) if config.near_start_weight > 0 else None
        self.projections = self._projections(method, task) if config.protect != "none" else {}
        self.masks = selected_entries(method, student, self.trained) if config.select != "all" else {}
        for name, mask in self.masks.items():
            self.trained[name].register_hook(lambda gradient, mask=mask: gradient * mask)

    def loss(self, loss: Tensor, predict: Any, index: int) -> Tensor:
        """The method's loss of batch `index`, shaped, the distance to the start, and what replay adds.

        predict: the student, called with gradient.
        """
        config = self.config
        if config.loss_shape == "hellinger":
            loss = hellinger(loss, config.hellinger_scale)
        if config.near_start_weight > 0:
            if self.adapters is None:
                moved = distance(self.trained, self.start, config.near_start)
            else:
                moved = adapted_distance(self.adapters, config.near_start)
            loss = loss + config.near_start_weight * moved
        if self.replay is not None:
            loss = loss + config.replay_weight * self.replay.loss(predict, index)
        return loss

    @torch.no_grad()
    def after_step(self) -> None:
        """Take back what the step should not have changed."""
        for name, projection in self.projections.items():
            value = self.trained[name]
            before = 0 if name.endswith(".down") else self.start[name]  # an adapter's change is up times down
            value.copy_(before + ((value - before).double() @ projection).float())
        for name, mask in self.masks.items():
            keep_selected(self.trained[name], self.start[name], mask)

    def _adapters(self, method: GradientMethod) -> Adapters | None:
        """Those that are trained; None where weights are. Raises UserError where no weight's change is known yet."""
        if isinstance(method, AdapterMethod):
            return method.adapters
        reason = (
            "its weights are solved for after the training"
            if not method.saves_what_it_trains
            else "it changes no weight"
            if method.delta_kind == "hook"
            else None
        )
        if reason:
            raise UserError(f"method '{method.name}': near_start does not hold, as {reason}: leave near_start_weight 0")
        return None

    def _projections(self, method: GradientMethod, task: UnlearningTask) -> dict[str, Tensor]:
        """By the name of each trained matrix that reads the text: the projector of its inputs, fp64."""
        if not method.saves_what_it_trains:
            raise UserError(
                f"method '{method.name}': protect does not hold, as its weights are solved for after the training: "
                "leave protect out"
            )
        prompts = self._protected(task)
        embeddings = mean_token_embeddings(task, prompts)
        projector = complement_projector(embeddings)
        readers = (".attn2.to_k.weight", ".attn2.to_v.weight", ".attn2.to_k.down", ".attn2.to_v.down")
        found = {name: projector for name in self.trained if name.endswith(readers)}
        if not found:
            raise UserError(
                f"method '{method.name}': protect is for keys and values of the cross-attention, and the group "
                f"'{method.group}' has none of them"
            )
        return found

    def _replay(self, method: GradientMethod, task: UnlearningTask) -> Replay:
        if method.network != "unet":
            raise UserError(f"method '{method.name}': replay_weight is for methods that train the denoiser: leave it 0")
        replay = self.config.replay
        return Replay(task, self.config, replay if isinstance(replay, tuple) else retained_prompts(task))

    def _protected(self, task: UnlearningTask) -> list[str]:
        protect = self.config.protect
        prompts = list(protect) if isinstance(protect, tuple) else retained_prompts(task)
        if not prompts:
            raise UserError("protect: 'retained' finds no retained concept in the concept set, should be prompts")
        return prompts


def retained_prompts(task: UnlearningTask) -> list[str]:
    """Phrases of the concepts that must stay, each once."""
    return list(dict.fromkeys(kept.phrase for kept in task.retained()))


def hellinger(loss: Tensor, scale: float) -> Tensor:
    """1 - exp(-loss / scale), in [0, 1): the squared Hellinger distance of two Gaussians at that squared distance."""
    return -torch.expm1(-loss / scale)


def distance(trained: Mapping[str, Tensor], start: Mapping[str, Tensor], norm: str) -> Tensor:
    """The mean over all entries of |value - start| (`l1`) or of its square (`l2`)."""
    differences = [value - start[name] for name, value in trained.items()]
    parts = [each.abs().sum() if norm == "l1" else each.square().sum() for each in differences]
    return torch.stack(parts).sum() / sum(each.numel() for each in differences)


def adapted_distance(adapters: Adapters, norm: str) -> Tensor:
    """The same of alpha/rank * up down, what adapters add to their layers' weights: `up` is zero at the start."""
    sums, count = [], 0
    for adapter in adapters.layers.values():
        up, down = adapter.up.flatten(1), adapter.down.flatten(1)
        if norm == "l1":
            sums.append(adapter.scale * (up @ down).abs().sum())
        else:  # the trace of (up down)^T (up down)
            sums.append(adapter.scale**2 * ((up.T @ up) * (down @ down.T)).sum())
        count += len(up) * down.shape[1]
    return torch.stack(sums).sum() / count


def mean_token_embeddings(task: UnlearningTask, prompts: Sequence[str]) -> Tensor:
    """(n, D): of each prompt the mean embedding of its own tokens, without BOS and padding."""
    embeddings = encode_prompts(task.base, prompts).encoder_hidden_states
    ends = [max(1, last) + 1 for last in last_subject_token(task.base, prompts)]
    return torch.stack([row[1:end].mean(dim=0) for row, end in zip(embeddings, ends, strict=True)])


def complement_projector(embeddings: Tensor) -> Tensor:
    """I - V V^T, (D, D) fp64, of the row space V of (n, D) embeddings: what it maps has no part along any of them.

    Raises UserError where they span the whole space, so that nothing could change.
    """
    _, values, rows = torch.linalg.svd(embeddings.double(), full_matrices=False)
    basis = rows[values > SMALLEST_SINGULAR_VALUE * values[0]]
    if len(basis) == embeddings.shape[1]:
        raise UserError(
            f"protect: {len(embeddings)} prompts span all {embeddings.shape[1]} dimensions of the text's embeddings, "
            "so that nothing could change: protect fewer of them"
        )
    return torch.eye(embeddings.shape[1], dtype=torch.float64, device=embeddings.device) - basis.T @ basis
