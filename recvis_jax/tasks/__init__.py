"""Objectives: each pairs a built model with a loss and returns a `Task` of pure functions."""

from recvis_jax.tasks.classify import classify
from recvis_jax.tasks.mae import mae
from recvis_jax.tasks.pixels import pixels
from recvis_jax.tasks.regress import regress
from recvis_jax.tasks.task import Task
from recvis_jax.tasks.translate import translate

TASKS = {"classify": classify, "mae": mae, "pixels": pixels, "regress": regress, "translate": translate}

__all__ = ["TASKS", "Task", "classify", "mae", "pixels", "regress", "translate"]
