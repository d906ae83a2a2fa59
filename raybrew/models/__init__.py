"""Loading, building, running and measuring models."""
