"""Metrics by which students are judged. Plain rows."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["METRICS"]

#: Every metric that some task has, and what it is.
METRICS: Mapping[str, str] = MappingProxyType(
    {
        "accuracy": "share of rows (tagging: words, masked_lm: masked tokens) that are right",
        "macro_f1": "F1 of each class, averaged over classes",
        "mcc": "Matthews' correlation coefficient, fair to unbalanced classes",
        "micro_f1": "F1 over all labels of all rows",
        "subset_accuracy": "share of rows whose set of labels is right",
        "pearson": "Pearson's correlation",
        "spearman": "Spearman's rank correlation",
        "f1": "F1 of whole spans by seqeval; of words that an answer shares with a true one by SQuAD's or CMRC's rule",
        "exact_match": "share of answers that equal a true one, by SQuAD's or CMRC's rule",
        "precision": "share of the spans found that are right, by seqeval",
        "recall": "share of the true spans that are found, by seqeval",
        "log_likelihood": "mean log-probability of masked tokens; perplexity is exp of its negative",
    }
)
