"""Objectives: each pairs a built model with a loss and gives a `Task` of pure functions."""

from recvis_jax.tasks.classify import classify
from recvis_jax.tasks.regress import regress
from recvis_jax.tasks.task import Task

TASKS = {"classify": classify, "regress": regress}

__all__ = ["TASKS", "Task", "classify", "regress"]
