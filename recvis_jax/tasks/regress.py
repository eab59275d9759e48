"""Regression of one number or vector per image."""

import functools

from flax import linen as nn

from recvis_jax import errors
from recvis_jax.evaluation import metrics
from recvis_jax.tasks import losses
from recvis_jax.tasks.applying import apply_eval, apply_train, initialiser
from recvis_jax.tasks.task import Task


def regress(
    model: nn.Module,
    *,
    image_shape: tuple[int, int, int],
    loss: str = "l2",
    delta: float = 1.0,
) -> Task:
    """Pairs a model with a regression loss on real-valued labels.

    Args:
      model: `__call__(image, *, train) -> (prediction (b k), acts)`; k = 1 for labels of shape (b,).
      image_shape: (h, w, c) of the model's input.
      loss: "l1", "l2" or "huber".
      delta: error at which Huber's loss becomes linear, in units of the label.
    """
    names = ("l1", "l2", "huber")
    function = errors.choose({name: losses.LOSSES[name] for name in names}, loss, "regression loss")
    if loss == "huber":
        function = functools.partial(function, delta=delta)
    elif delta != 1.0:
        raise errors.BadRequest(f"task.delta={delta} is not used by task.loss={loss!r}.")

    def train(params, model_state, batch, key):
        prediction, _, new = apply_train(model, params, model_state, batch, key)
        return {"loss": function(prediction, batch["label"])}, new, {}

    def predict(params, model_state, batch):
        return {"prediction": apply_eval(model, params, model_state, batch["image"])[0]}

    return Task(
        init=initialiser(model, image_shape),
        loss=train,
        predict=predict,
        metrics={
            "loss": metrics.loss(function),
            "mean_absolute_error": metrics.mean_absolute_error(),
            "mean_squared_error": metrics.mean_squared_error(),
        },
        best=("loss", "min"),
        gives="numbers",
    )
