"""BiGRU: word embeddings, one bidirectional GRU and a head, as Hugging Face models.

TextBrewer's smallest student (its CoNLL-2003 table), in the manner of Tang et al. (arXiv:1903.12136), who distil BERT
into a bidirectional recurrent network. Importing this module makes the Auto classes of transformers know them. It
imports nothing of raybrew: its source is saved with each model, which so loads with trust_remote_code=True as well.
"""

from typing import Any, Optional

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

__all__ = [
    "BiGRUConfig",
    "BiGRUForQuestionAnswering",
    "BiGRUForSequenceClassification",
    "BiGRUForTokenClassification",
    "BiGRUModel",
]


class BiGRUConfig(PretrainedConfig):
    """Sizes: `embedding_size` of words, `hidden_size` of each direction and of what is made of both."""

    model_type = "raybrew-bigru"

    def __init__(
        self,
        vocab_size: int = 30522,
        embedding_size: int = 768,
        hidden_size: int = 768,
        dropout: float = 0.1,
        initializer_range: float = 0.02,
        pad_token_id: Optional[int] = 0,  # noqa: UP045 (this file runs outside of raybrew too)
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.pad_token_id = pad_token_id
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.hidden_size = hidden_size
        self.dropout = dropout
        self.initializer_range = initializer_range

    @property
    def num_hidden_layers(self) -> int:
        """Hidden states: the embeddings, and what the GRU makes of them."""
        return 1

    @property
    def num_attention_heads(self) -> int:
        """There is no attention."""
        return 0

    @property
    def intermediate_size(self) -> int:
        """Nor a feed-forward layer."""
        return 0


class BiGRUPreTrainedModel(PreTrainedModel):
    """What all have in common: embeddings and linear layers start as BERT's, the GRU as torch does it."""

    config_class = BiGRUConfig
    base_model_prefix = "bigru"

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, 0.0, self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.GRU):
            # torch's own start, drawn again: weights may have been made without memory for them.
            module.reset_parameters()


class BiGRUModel(BiGRUPreTrainedModel):
    """Embeddings, the two directions, and one linear layer with tanh that joins them to `hidden_size`."""

    def __init__(self, config: BiGRUConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.embedding_size, padding_idx=config.pad_token_id)
        # Two of one direction rather than one of two, which would need the lengths on the CPU to pass over padding.
        self.ahead = nn.GRU(config.embedding_size, config.hidden_size, batch_first=True)
        self.behind = nn.GRU(config.embedding_size, config.hidden_size, batch_first=True)
        self.join = nn.Linear(2 * config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Rows of words."""
        return self.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces them."""
        self.embeddings = value  # type: ignore[assignment]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Optional[Tensor] = None,  # noqa: UP045
        token_type_ids: Optional[Tensor] = None,  # noqa: UP045
        output_hidden_states: Optional[bool] = None,  # noqa: UP045
        return_dict: Optional[bool] = None,  # noqa: UP045
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """(batch, length) -> hidden states (batch, length, hidden_size), and the last of both directions (pooled).

        `token_type_ids` count for nothing. Padding may stand anywhere: no real token sees it.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        embedded = self.embeddings(input_ids)
        # Real tokens first, so that padding comes after them for the one direction; turned about, for the other.
        places = torch.arange(mask.shape[1], device=mask.device)
        # In their order; not by a stable sort, which ONNX does not have.
        front = ((1 - mask) * mask.shape[1] + places).argsort(dim=1)
        count = mask.sum(dim=1, keepdim=True).clamp_min(1)
        back = torch.where(places < count, count - 1 - places, places)
        given = _picked(self.dropout(embedded), front)
        ahead = self.ahead(given)[0]
        behind = _picked(self.behind(_picked(given, back))[0], back)
        last = torch.cat([_picked(ahead, count - 1), behind[:, :1]], dim=-1)[:, 0]
        joined = torch.tanh(self.join(torch.cat([ahead, behind], dim=-1)))
        hidden = _picked(joined, front.argsort(dim=1))
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden,
            pooler_output=torch.tanh(self.join(last)),
            hidden_states=(embedded, hidden) if output_hidden_states else None,
        )


def _picked(values: Tensor, places: Tensor) -> Tensor:
    """Rows (batch, length, dim) at `places` (batch, some) of their second dimension."""
    return values.gather(1, places.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


class BiGRUForSequenceClassification(BiGRUPreTrainedModel):
    """One vector of logits per row, from the last states of both directions."""

    def __init__(self, config: BiGRUConfig) -> None:
        super().__init__(config)
        self.num_labels = int(config.num_labels or 1)
        self.bigru = BiGRUModel(config)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()

    def forward(self, input_ids: Tensor, **kwargs: Any) -> SequenceClassifierOutput:
        """As `BiGRUModel.forward`."""
        kwargs.pop("return_dict", None)
        outputs = self.bigru(input_ids, **kwargs)
        logits = self.classifier(self.dropout(outputs.pooler_output))
        return SequenceClassifierOutput(logits=logits, hidden_states=outputs.hidden_states)


class BiGRUForTokenClassification(BiGRUPreTrainedModel):
    """One vector of logits per token."""

    def __init__(self, config: BiGRUConfig) -> None:
        super().__init__(config)
        self.num_labels = int(config.num_labels or 1)
        self.bigru = BiGRUModel(config)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()

    def forward(self, input_ids: Tensor, **kwargs: Any) -> TokenClassifierOutput:
        """As `BiGRUModel.forward`."""
        kwargs.pop("return_dict", None)
        outputs = self.bigru(input_ids, **kwargs)
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        return TokenClassifierOutput(logits=logits, hidden_states=outputs.hidden_states)


class BiGRUForQuestionAnswering(BiGRUPreTrainedModel):
    """Logits of start and end for each token."""

    def __init__(self, config: BiGRUConfig) -> None:
        super().__init__(config)
        self.num_labels = 2
        self.bigru = BiGRUModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def forward(self, input_ids: Tensor, **kwargs: Any) -> QuestionAnsweringModelOutput:
        """As `BiGRUModel.forward`."""
        kwargs.pop("return_dict", None)
        outputs = self.bigru(input_ids, **kwargs)
        start, end = self.qa_outputs(outputs.last_hidden_state).unbind(dim=-1)
        return QuestionAnsweringModelOutput(start_logits=start, end_logits=end, hidden_states=outputs.hidden_states)


BiGRUConfig.register_for_auto_class()
AutoConfig.register(BiGRUConfig.model_type, BiGRUConfig, exist_ok=True)
for _auto, _model in (
    (AutoModel, BiGRUModel),
    (AutoModelForSequenceClassification, BiGRUForSequenceClassification),
    (AutoModelForTokenClassification, BiGRUForTokenClassification),
    (AutoModelForQuestionAnswering, BiGRUForQuestionAnswering),
):
    _auto.register(BiGRUConfig, _model, exist_ok=True)
    _model.register_for_auto_class(_auto.__name__)
