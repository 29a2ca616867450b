"""Concepts as targets: how similar an embedding is to that of a few images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zennit_rules.core.interpose import interpose

from ...errors import LearnpropError
from .layout import TensorOutput

SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "dot": lambda embedding, concept: embedding @ concept,
    "cosine": lambda embedding, concept: F.cosine_similarity(embedding, concept[None], dim=1),
}


class Concept:
    """Target ``output (B, D) -> (B,)``: similarity of an embedding to a concept's.

    Args:
        embedding: ``(D,)``, for example the mean of those of some images.
        similarity: ``"dot"`` or ``"cosine"``.

    Raises:
        LearnpropError: For another similarity, or an embedding that is no vector.

    Example:
        >>> import torch, torchvision, captum_learnprop as cl
        >>> model = cl.Embedding(torchvision.models.vit_b_32(weights=None).eval())
        >>> concept = cl.Concept.of(model, torch.rand(2, 3, 224, 224))
        >>> cl.CDAM(model).attribute(torch.rand(1, 3, 224, 224), target=concept).shape
        torch.Size([1, 1, 7, 7])
    """

    def __init__(self, embedding: Tensor, similarity: str = "dot") -> None:
        if similarity not in SIMILARITIES:
            raise LearnpropError(f"unknown similarity {similarity!r}; choose {' or '.join(map(repr, SIMILARITIES))}")
        if embedding.dim() != 1:
            raise LearnpropError(f"a concept's embedding is a vector (D,), got {tuple(embedding.shape)}")
        self.embedding, self.similarity = embedding.detach(), similarity

    @classmethod
    def of(cls, model: nn.Module, images: Tensor, similarity: str = "dot") -> Concept:
        """The concept that some images ``(n, C, H, W)`` share: the mean of their embeddings by ``model``."""
        with torch.no_grad():
            return cls(TensorOutput(model)(images).mean(0), similarity)

    def __call__(self, output: Tensor) -> Tensor:
        """Similarity of each embedding ``(B, D)`` to the concept's, ``(B,)``.

        Raises:
            LearnpropError: If the output is no embedding of as many dimensions.
        """
        if output.dim() != 2 or output.shape[1] != len(self.embedding):
            raise LearnpropError(
                f"the concept has {len(self.embedding)} dimensions, the model's output is {tuple(output.shape)}; "
                "explain the model that the concept was made with"
            )
        return SIMILARITIES[self.similarity](output, self.embedding.to(output))


class Embedding(nn.Module):
    """A classifier without its head: gives what the head, the last linear layer that is called, would get.

    Args:
        model: A classifier, which stays as it is.
        head: Its head, if it is not the last linear layer.
    """

    def __init__(self, model: nn.Module, head: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model
        self.training = model.training
        self._heads = [head] if head is not None else [m for m in model.modules() if isinstance(m, nn.Linear)]

    def forward(self, *inputs: Any) -> Tensor:
        """Embeddings ``(B, D)`` of the inputs of the model.

        Raises:
            LearnpropError: If no linear layer is called on embeddings.
        """
        given: list[Tensor] = []

        def note(call_next: Any, x: Tensor) -> Any:
            given.append(x)
            return call_next(x)

        handles = [interpose(head, note) for head in self._heads]
        try:
            self.model(*inputs)
        finally:
            for handle in handles:
                handle.remove()
        if not given or given[-1].dim() != 2:
            found = "none was called" if not given else f"it gets {tuple(given[-1].shape)}"
            raise LearnpropError(f"the last linear layer is no head over embeddings (B, D): {found}; pass head=")
        return given[-1]
