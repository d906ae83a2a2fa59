"""TextBrewer's Python API on raybrew's loop and objective: distillers, adaptors, configurations, presets."""
