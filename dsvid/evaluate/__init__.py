"""Evaluation over ranks, one module a task: scores of all samples, gathered, held against labels, written down.

Nothing is imported here: the reports have to be at hand without torch.
"""
