"""Objectives: each pairs a built model with a loss and returns a `Task` of pure functions."""

from recvis_jax.tasks.centre import centre
from recvis_jax.tasks.classify import classify
from recvis_jax.tasks.detect import detect
from recvis_jax.tasks.mae import mae
from recvis_jax.tasks.pixels import pixels
from recvis_jax.tasks.regress import regress
from recvis_jax.tasks.segment import segment
from recvis_jax.tasks.task import Task
from recvis_jax.tasks.translate import translate

TASKS = {
    "centre": centre,
    "classify": classify,
    "detect": detect,
    "mae": mae,
    "pixels": pixels,
    "regress": regress,
    "segment": segment,
    "translate": translate,
}

__all__ = ["TASKS", "Task", "centre", "classify", "detect", "mae", "pixels", "regress", "segment", "translate"]
