"""Readers of all formats of rows, and what a source text names."""
