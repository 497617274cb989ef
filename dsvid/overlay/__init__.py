"""Timelines drawn on pictures: labels that do not cover each other, bars, curves, contact sheets. Knows no model."""
