"""Rules that choose layers: which ones are compared, and which ones a student starts from."""

from __future__ import annotations

__all__ = ["LAYER_MAPS", "LAYER_RULES"]

#: Rules that pair student layers with teacher layers; a list of [student, teacher] pairs does as well (0 = embeddings).
LAYER_MAPS = {
    "even": "student layer i with teacher layer i * teacher depth / student depth, embeddings included (TinyBERT)",
    "last": "the student's layers with the teacher's last ones, in order",
    "last_inner": "as `last`, but without the last layer of each (PKD-last)",
    "skip": "student layer i with teacher layer i * (teacher depth // student depth), the last left out (PKD-skip)",
    "final": "only the last layer of each",
}

#: Rules that name the teacher layers a student starts from; a list of layer numbers (1 = first) does as well.
LAYER_RULES = {
    "even": "layer i of k takes teacher layer round(i * depth / k): spread over the whole depth (DistilBERT)",
    "first": "layers 1..k of the teacher",
    "last": "the last k layers of the teacher (PKD-last)",
    "skip": "every (depth // k)-th layer from the first on: 1, 3, 5, ... for half of the layers (PKD-skip)",
}
