"""Losses as pure functions: tensors in, `LossTerm(sum, count)` out. `table` lists them and imports no torch."""
