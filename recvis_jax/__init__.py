"""Visual recognition in JAX, from the bag of words to masked autoencoders, as pure functions.

    import recvis_jax as rv

    data = rv.data.from_arrays(images, labels, val=0.1)  # or rv.data.open("fashion_mnist")
    model = rv.models.create("lenet5", num_classes=10)
    run = rv.fit(model, data, optax.adam(1e-3), epochs=3)
    run.evaluate(data.val), run.features(images, "features"), run.predict(images), run.save("runs/x"), rv.open("runs/x")

Sub-packages and verbs are loaded on first use. Programs are `python -m recvis_jax.train` and its siblings.
"""

__version__ = "0.1.0"

_VERBS = {  # -> the module that has it
    "fit": "library", "open": "library", "Model": "library",
    "init": "stepping", "make_step": "stepping", "task": "stepping",
}  # fmt: skip
_ROOMS = (
    "classical", "data", "errors", "evaluation", "generation", "library", "models", "planning", "pretrained", "tasks",
    "training", "trees", "vis",
)  # fmt: skip

__all__ = [*_VERBS, *_ROOMS, "__version__"]


def __getattr__(name: str):
    import importlib

    if name in _VERBS:
        return getattr(importlib.import_module(f"recvis_jax.{_VERBS[name]}"), name)
    if name in _ROOMS:
        return importlib.import_module(f"recvis_jax.{name}")
    raise AttributeError(f"module 'recvis_jax' has no attribute {name!r}; it has: {', '.join((*_VERBS, *_ROOMS))}.")


def __dir__() -> list[str]:
    return sorted(__all__)
