"""A toy objective on pictures with boxes, of few parameters: says where the objects are, in the order of their rows."""

import jax.numpy as jnp
import optax
from flax import linen as nn

from recvis_jax.evaluation import metrics
from recvis_jax.tasks import Task
from recvis_jax.tasks.applying import apply_eval, apply_train

MOST, SIDE = 3, 64


class Boxes(nn.Module):
    """Four edges as fractions of the image, and the scores of three classes, for each of three rows."""

    @nn.compact
    def __call__(self, image, *, train):
        x = nn.avg_pool(image, (8, 8), (8, 8)).reshape(len(image), -1)
        x = nn.relu(nn.Dense(64, name="hidden")(x))
        return nn.Dense(MOST * 7, name="head")(x).reshape(-1, MOST, 7), {"hidden": x}


def task(model):
    def terms(output, batch):
        mask = batch["boxes_mask"]
        edges = jnp.abs(output[..., :4] - batch["boxes"] / SIDE).sum(-1)
        nats = optax.softmax_cross_entropy_with_integer_labels(output[..., 4:], jnp.maximum(batch["labels"], 0))
        return {"edges": jnp.where(mask, edges, 0).sum(1), "classes": jnp.where(mask, nats, 0).sum(1)}

    def counts(batch):
        return dict.fromkeys(("edges", "classes"), batch["boxes_mask"].sum(1))

    def loss(params, model_state, batch, key):
        output, _, new = apply_train(model, params, model_state, batch, key)
        return terms(output, batch), new, {}

    def predict(params, model_state, batch):
        output, _ = apply_eval(model, params, model_state, batch["image"])
        return {"boxes": output, "terms": terms(output, batch), "counts": counts(batch)}

    def init(key):
        return dict(model.init(key, jnp.zeros((1, SIDE, SIDE, 3)), train=False))

    return Task(init, loss, predict, {"loss": metrics.terms({})}, ("loss", "min"), counts=counts)
