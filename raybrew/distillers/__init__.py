"""Objectives: what a student is trained on, from signals of teacher and student."""
