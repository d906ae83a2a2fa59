"""Figures of comparisons and sweeps, with what stands around them."""
