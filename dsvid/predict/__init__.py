"""Weights and one video -> a timeline of predictions. Knows no drawing; one module per task."""
