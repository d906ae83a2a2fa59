"""The rows. Widths, depths and heads are not known here: rules of matches find the layers of the models at hand."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from raybrew.catalog.methods.base import Figure, Method

__all__ = ["METHODS"]

#: A stage that learns the teacher's logits alone, as TinyBERT's second one.
_PREDICTION = {"name": "prediction"}

#: Losses of a stage in which layers alone are learnt.
_NO_LOGITS = {"kd_weight": 0.0, "hard_label_weight": 0.0}

_AUTHORS_MINILM = "Wang et al."

#: Name in `distill.method` -> what it is.
METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "kd": Method(
            summary="the teacher's logits at distill.temperature, nothing else",
            distill={"kd_weight": 1.0, "hard_label_weight": 0.0},
            paper="Distilling the Knowledge in a Neural Network",
            authors="Hinton et al.",
            arxiv="1503.02531",
        ),
        "labels": Method(
            summary="labels alone, without a teacher: the control that methods are measured against",
            distill={"kd_weight": 0.0, "hard_label_weight": 1.0},
        ),
        "textbrewer": Method(
            summary="logits at temperature 8 (without the factor T^2), hidden states and MMD of evenly spread layers",
            distill={
                "temperature": 8.0,
                "kd_weight": 1.0,
                "hard_label_weight": 0.0,
                "scale_by_temperature_squared": False,
                "matches": [{"loss": "hidden_mse", "layers": "even"}, {"loss": "mmd", "layers": "even"}],
            },
            paper="TextBrewer: An Open-Source Knowledge Distillation Toolkit for Natural Language Processing",
            authors="Yang et al.",
            arxiv="2002.12620",
            figures=(
                Figure("T6", "MNLI accuracy, dev m/mm", "83.5 / 84.0"),
                Figure("T6", "SQuAD 1.1 EM/F1, dev", "80.8 / 88.1"),
                Figure("T6", "CoNLL-2003 F1", "90.7"),
                Figure("T3", "MNLI accuracy, dev m/mm", "81.8 / 82.7"),
                Figure("T3", "SQuAD 1.1 EM/F1, dev", "76.4 / 84.9"),
                Figure("T3", "CoNLL-2003 F1", "87.5"),
                Figure("T4-tiny", "MNLI accuracy, dev m/mm", "82.0 / 82.6"),
                Figure("T4-tiny", "SQuAD 1.1 EM/F1, dev", "75.2 / 84.0"),
                Figure("T4-tiny", "CoNLL-2003 F1", "89.1"),
            ),
            differs="padding plays no part in MMD",
        ),
        "distilbert": Method(
            summary="logits at temperature 2 (x 5), the task's labels (x 2), cosine of the last hidden states (x 1)",
            distill={
                "temperature": 2.0,
                "kd_weight": 5.0,
                "hard_label_weight": 2.0,
                "matches": [{"loss": "cos", "layers": "final"}],
            },
            paper="DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter",
            authors="Sanh et al.",
            arxiv="1910.01108",
            starts={"init_layers": "even"},
            figures=(
                Figure("T6", "MNLI accuracy, dev", "82.2"),
                Figure("T6", "SST-2 accuracy, dev", "91.3"),
                Figure("T6", "SQuAD 1.1 EM/F1, dev", "77.7 / 85.8"),
            ),
            differs="the paper distils in pre-training, where labels are the masked words, and fine-tunes afterwards",
        ),
        "pkd-skip": Method(
            summary="logits at temperature 10, labels, and the first token of every (depth / k)-th layer but the last",
            distill={
                "temperature": 10.0,
                "kd_weight": 0.5,
                "hard_label_weight": 0.5,
                "matches": [{"loss": "pkd", "layers": "skip", "weight": 0.1}],
            },
            paper="Patient Knowledge Distillation for BERT Model Compression",
            authors="Sun et al.",
            arxiv="1908.09355",
            starts={"init_layers": "first"},
            figures=(
                Figure("T6", "MNLI accuracy, test m/mm", "81.5 / 81.0"),
                Figure("T6", "SQuAD 1.1 EM/F1, dev", "77.1 / 85.3"),
                Figure("T3", "MNLI accuracy, test m/mm", "76.7 / 76.3"),
            ),
            differs="alpha 0.5 and T 10 of the values that the paper searches; 0.1 per pair is a beta of about 400 at "
            "width 768 where, as in its code, means over width and pairs are taken",
        ),
        "pkd-last": Method(
            summary="as pkd-skip, with the teacher's last layers but the very last",
            distill={
                "temperature": 10.0,
                "kd_weight": 0.5,
                "hard_label_weight": 0.5,
                "matches": [{"loss": "pkd", "layers": "last_inner", "weight": 0.1}],
            },
            paper="Patient Knowledge Distillation for BERT Model Compression",
            authors="Sun et al.",
            arxiv="1908.09355",
            starts={"init_layers": "first"},
            differs="as pkd-skip",
        ),
        "tinybert": Method(
            summary="first embeddings, hidden states and attention scores of evenly spread layers, then the logits",
            distill={
                "temperature": 1.0,
                "kd_weight": 1.0,
                "hard_label_weight": 0.0,
                "stages": [
                    {
                        "name": "intermediate",
                        "share": 0.75,
                        **_NO_LOGITS,
                        "matches": [
                            {"loss": "hidden_mse", "layers": "even"},
                            {"loss": "attention_mse", "layers": "even"},
                        ],
                    },
                    _PREDICTION,
                ],
            },
            paper="TinyBERT: Distilling BERT for Natural Language Understanding",
            authors="Jiao et al.",
            arxiv="1909.10351",
            figures=(
                Figure("T4-tiny", "MNLI accuracy, m/mm (as TextBrewer quotes it)", "82.8 / 82.9"),
                Figure("T4-tiny", "SQuAD 1.1 EM/F1, dev", "72.7 / 82.1"),
            ),
            differs="its task-specific half alone, on the rows given: the paper starts from a general TinyBERT and "
            "augments the rows; one learning rate for both stages",
        ),
        "theseus": Method(
            summary="labels alone; first the student's layers replace the teacher's inside it, by a probability that "
            "rises from 0.3 to 1, then the student alone",
            distill={
                "kd_weight": 0.0,
                "hard_label_weight": 1.0,
                "stages": [{"name": "replacing", "share": 0.5, "theseus": {}}, {"name": "alone"}],
            },
            paper="BERT-of-Theseus: Compressing BERT by Progressive Module Replacing",
            authors="Xu et al.",
            arxiv="2002.02925",
            starts={"init_layers": "first"},
            figures=(Figure("T6", "MNLI accuracy, test m/mm", "82.4 / 82.1"),),
            differs="the teacher runs without dropout; at least one layer is replaced in each step",
        ),
        "emd": Method(
            summary="logits at temperature 1, and all layers (hidden states, attention scores) against all by the "
            "earth mover's distance",
            distill={
                "temperature": 1.0,
                "kd_weight": 1.0,
                "hard_label_weight": 0.0,
                "emd": {"hidden": 1.0, "attention": 1.0},
            },
            paper="BERT-EMD: Many-to-Many Layer Mapping for BERT Compression with Earth Mover's Distance",
            authors="Li et al.",
            arxiv="2010.06133",
            differs="the paper tunes weights and temperatures for each task",
        ),
        "minilm": Method(
            summary="first attention probabilities and value relations of the last layers, then the logits",
            distill={
                "temperature": 1.0,
                "kd_weight": 1.0,
                "hard_label_weight": 0.0,
                "stages": [
                    {
                        "name": "relations",
                        "share": 0.5,
                        **_NO_LOGITS,
                        "matches": [{"loss": "relation_kl", "layers": "final", "relations": ["attention", "value"]}],
                    },
                    _PREDICTION,
                ],
            },
            paper="MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers",
            authors=_AUTHORS_MINILM,
            arxiv="2002.10957",
            figures=(
                Figure("6 layers x 384, after UniLM v2", "MNLI accuracy, dev m", "83.3"),
                Figure("6 layers x 384, after UniLM v2", "SST-2 accuracy, dev", "91.5"),
                Figure("6 layers x 384, after UniLM v2", "SQuAD 2.0 F1, dev", "75.6"),
            ),
            differs="the paper distils a pre-trained teacher and fine-tunes on labels; here the teacher is that of the "
            "task, and its logits are learnt last",
        ),
        "minilm-v2": Method(
            summary="first relations of queries, keys and values of the last layers, then the logits",
            distill={
                "temperature": 1.0,
                "kd_weight": 1.0,
                "hard_label_weight": 0.0,
                "stages": [
                    {
                        "name": "relations",
                        "share": 0.5,
                        **_NO_LOGITS,
                        "matches": [{"loss": "relation_kl", "layers": "final", "relations": ["query", "key", "value"]}],
                    },
                    _PREDICTION,
                ],
            },
            paper="MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained Transformers",
            authors=_AUTHORS_MINILM,
            arxiv="2012.15828",
            figures=(
                Figure("T6", "MNLI accuracy, dev m", "84.2"),
                Figure("T6", "SQuAD 2.0 F1, dev", "76.3"),
            ),
            differs="as minilm; as many relation heads as the teacher has attention heads (the paper: 48 at base size, "
            "relation_heads), and the last layer (the paper takes an inner one of large teachers: layers: [[6, 21]])",
        ),
    }
)
