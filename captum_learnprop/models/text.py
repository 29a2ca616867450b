"""A text model of Hugging Face that takes embeddings: what methods and the trainer can differentiate and delete."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from captum_learnprop.errors import LearnpropError
from captum_learnprop.forward import tensor_of
from captum_learnprop.models.inputs import class_names_of


class OnEmbeddings(nn.Module):
    """A text model whose input are the embeddings of tokens, as a series ``(B, D, T)``: D channels and T tokens.

    Every method for series explains it, `RuleTrainer` trains on what `embed` gives, and `captum_learnprop.explain`
    takes texts for it. A token whose embedding is 0 throughout is padding: attention does not look at it,
    unless all of them are. The model's parameters and modules are shared, and stay the user's.

    Args:
        net: A model of Hugging Face that takes ``inputs_embeds`` and ``attention_mask`` and returns logits.
        tokenizer: Its tokenizer, from texts to numbers of tokens; None where numbers are given.

    Attributes:
        class_names: Names of the classes by the model's configuration, None where it has none.
        multi_label: Whether classes do not exclude each other.

    Raises:
        LearnpropError: The model has no input embeddings, or the tokenizer is none.

    Example:
        >>> import transformers
        >>> size = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
        >>> config = transformers.BertConfig(vocab_size=20, **size)
        >>> net = OnEmbeddings(transformers.BertForSequenceClassification(config).eval())
        >>> inputs = net.embed([[3, 5, 7], [4, 6]])
        >>> inputs.shape, net(inputs).shape
        (torch.Size([2, 8, 3]), torch.Size([2, 2]))
    """

    def __init__(self, net: nn.Module, tokenizer: Callable[..., Any] | None = None) -> None:
        super().__init__()
        if not isinstance(net, nn.Module) or not callable(getattr(net, "get_input_embeddings", None)):
            raise LearnpropError(
                f"OnEmbeddings is for text models of Hugging Face, which have get_input_embeddings(); got "
                f"{type(net).__name__}"
            )
        if tokenizer is not None and not callable(tokenizer):
            raise LearnpropError(f"a tokenizer is called with a text; got {type(tokenizer).__name__}")
        self.net = net
        self.tokenizer = tokenizer
        self.class_names = class_names_of("", net)
        problem = getattr(getattr(net, "config", None), "problem_type", None)
        self.multi_label = problem == "multi_label_classification"
        # A module in training mode around a net that is not would be taken for one that draws random numbers.
        self.training = net.training

    def forward(self, embeddings: Tensor) -> Tensor:
        """Returns the logits for embeddings of words ``(B, D, T)``; the model adds those of positions."""
        seen = (embeddings.detach() != 0).any(1)
        seen = seen | ~seen.any(1, keepdim=True)  # a softmax over nothing has no value
        return tensor_of(self.net(inputs_embeds=embeddings.transpose(1, 2), attention_mask=seen.long()), self.net)

    def numbers_of(self, text: Any) -> Tensor:
        """Returns the numbers of the tokens of one text, ``(T,)`` int64.

        Args:
            text: A text, or numbers of tokens.

        Raises:
            LearnpropError: There is no tokenizer, there are no tokens, or the model does not know one of them.
        """
        if isinstance(text, str):
            if self.tokenizer is None:
                raise LearnpropError(
                    "a text needs the model's tokenizer: OnEmbeddings(net, tokenizer), or give the numbers of tokens"
                )
            text = self.tokenizer(text)
        if isinstance(text, Mapping) or hasattr(text, "input_ids"):
            text = text["input_ids"]
        try:
            numbers = torch.as_tensor(text).detach().cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise LearnpropError(f"a text is a string or numbers of tokens, got {type(text).__name__}") from error
        numbers = numbers[0] if numbers.ndim == 2 and len(numbers) == 1 else numbers
        if numbers.ndim != 1 or numbers.is_floating_point() or not numbers.numel():
            raise LearnpropError(
                f"numbers of tokens are whole numbers (T,), at least one; got {numbers.dtype} {tuple(numbers.shape)}"
            )
        return self._known(numbers.long())

    def _known(self, numbers: Tensor) -> Tensor:
        words = int(self._table.num_embeddings)
        if int(numbers.min()) < 0 or int(numbers.max()) >= words:
            wrong = int(numbers.min()) if int(numbers.min()) < 0 else int(numbers.max())
            raise LearnpropError(
                f"token {wrong} is out of range: {type(self.net).__name__} knows {words}, 0 to {words - 1}; is the "
                "tokenizer the model's own?"
            )
        longest = getattr(getattr(self.net, "config", None), "max_position_embeddings", None)
        if isinstance(longest, int) and 0 < longest < len(numbers):
            raise LearnpropError(
                f"the text has {len(numbers)} tokens, and {type(self.net).__name__} takes {longest} at most: shorten it"
            )
        return numbers

    def words_of(self, numbers: Tensor) -> tuple[str, ...]:
        """Returns the tokens as words, by the tokenizer; the numbers where it does not tell."""
        told = getattr(self.tokenizer, "convert_ids_to_tokens", None)
        return tuple(map(str, numbers.tolist() if told is None else told(numbers.tolist())))

    @property
    def _table(self) -> Any:
        """The embedding of words."""
        find: Any = self.net.get_input_embeddings
        return find()

    @torch.no_grad()
    def embed(self, texts: str | Sequence[Any]) -> Tensor:
        """Returns embeddings of texts, ``(B, D, T)``; shorter ones are padded by 0 at the end.

        Args:
            texts: A text or several, each a string or numbers of tokens.

        Raises:
            LearnpropError: As of `numbers_of`; or texts of different lengths for a model that reads its answer at the
                last token, which would be padding.
        """
        several = [self.numbers_of(one) for one in ([texts] if isinstance(texts, str) else texts)]
        if not several:
            raise LearnpropError("there is no text: the list is empty")
        longest = max(map(len, several))
        if hasattr(self.net, "score") and min(map(len, several)) < longest:
            raise LearnpropError(
                f"{type(self.net).__name__} reads its answer at the last token, which would be padding: give texts of "
                "one length, or one at a time"
            )
        table = self._table
        like = table.weight
        inputs = like.new_zeros(len(several), table.embedding_dim, longest)
        for row, numbers in zip(inputs, several, strict=True):
            row[:, : len(numbers)] = table(numbers.to(like.device)).T
        return inputs
