"""CLIP's text encoder as the network that is edited."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Self

from torch import Tensor, nn

from efface.models.network import Network


class TextEncoder(Network):
    """Token ids to what the denoiser reads of them, with gradient where the weights ask for one."""

    component = "text_encoder"

    def __init__(self, module: nn.Module, encoder: Any = None) -> None:
        """encoder: the network itself, where `module` wraps it."""
        super().__init__(module)
        self.encoder: Any = encoder if encoder is not None else module

    def __call__(self, ids: Tensor, embeddings: Tensor | None = None, attention_mask: Tensor | None = None) -> Tensor:
        """(B, 77, D) fp32 from ids (B, 77); `embeddings` (B, 77, width) stand for those of the tokens."""
        with self._with_embeddings(embeddings) if embeddings is not None else nullcontext():
            hidden: Tensor = self.module(ids, attention_mask=attention_mask).last_hidden_state
        return hidden.float()

    def checkpoint_gradients(self) -> None:
        self.encoder.gradient_checkpointing_enable({"use_reentrant": False})
        self.encoder.train()  # transformers checkpoints in train mode alone; the encoder has no dropout

    def wrapped(self, wrap: nn.Module) -> Self:
        return type(self)(wrap, self.encoder)

    def embed(self, ids: Tensor) -> Tensor:
        """The tokens' embeddings (B, 77, width), without those of the positions."""
        embeddings: Tensor = self.encoder.get_input_embeddings()(ids)
        return embeddings

    @property
    def layers(self) -> Any:
        """The transformer's layers, the first one first."""
        return getattr(self.encoder, "text_model", self.encoder).encoder.layers

    @contextmanager
    def _with_embeddings(self, embeddings: Tensor) -> Iterator[None]:
        handle = self.encoder.get_input_embeddings().register_forward_hook(lambda module, inputs, output: embeddings)
        try:
            yield
        finally:
            handle.remove()


@contextmanager
def recorded(module: nn.Module) -> Iterator[list[Tensor]]:
    """What `module` gives in each forward pass within the block, with gradient."""
    outputs: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    handle = module.register_forward_hook(keep)
    try:
        yield outputs
    finally:
        handle.remove()
