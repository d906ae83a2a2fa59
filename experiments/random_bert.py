"""A BERT with random weights over a WordPiece vocabulary, for languages of which no pre-trained model is at hand.

python experiments/random_bert.py vocab.txt path/to/folder --layers 4 --hidden 256
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

__all__ = ["make"]


def make(vocabulary: Path, folder: Path, layers: int, hidden: int, seed: int = 0) -> int:
    """Writes model and tokenizer to `folder`, as `teacher.model` takes them; the number of its parameters."""
    torch.manual_seed(seed)
    pieces = vocabulary.read_text(encoding="utf-8").splitlines()
    tokenizer = BertTokenizerFast(vocab=str(vocabulary), do_lower_case=True)
    config = BertConfig(
        vocab_size=len(pieces),
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=max(1, hidden // 64),
        intermediate_size=4 * hidden,
        pad_token_id=pieces.index("[PAD]"),
    )
    model = BertModel(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.num_parameters()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vocabulary", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    given = parser.parse_args()
    print(f"{given.folder}: {make(given.vocabulary, given.folder, given.layers, given.hidden):,} parameters")
