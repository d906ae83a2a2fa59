"""Intervals, gains, effects and optimism of what runs measured: numbers, no words."""
