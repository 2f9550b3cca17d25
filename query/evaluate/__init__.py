"""Evaluations: how good search is, against the baselines, by commands that anyone can run."""
