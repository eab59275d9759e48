"""Recognition before 2012 as a model: local descriptors, an encoding by a vocabulary, a linear classifier."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from recvis_jax import classical
from recvis_jax.classical import encoding, gmm, kmeans, pca
from recvis_jax.classical.encoding import Weighting
from recvis_jax.classical.local import Local
from recvis_jax.errors import BadRequest, check_kwargs, choose
from recvis_jax.models.layers import Acts


class BagOfWords(nn.Module):
    """head(encode(components of the descriptors)): nothing of it is trained by gradients.

    What is learnt from descriptors lies in the collection "vocabulary": `mean` and `axes` of the principal components,
    `centers` of words, or `weights`, `means` and `variances` of a mixture. The classifier is `params`. `represent`
    learns both; unlearnt, the vocabulary is random.

    Attributes:
      descriptor: `name` of `classical.DESCRIPTORS` and its arguments.
      encoder: `name` of `classical.ENCODERS` and its arguments; None puts the descriptors of all places side by side.
      words: of the vocabulary.
      components: principal components of a descriptor that are kept; 0 for the descriptors as they are.
      whiten: whether these have variance 1.
      xy: appends the place, x and y from -xy / 2 to xy / 2, to each descriptor; 0 for none.
      pyramid, weighting: see `classical.encoding.make`.
      keep_flat: whether descriptors without contrast, which are zeros, count; else they are left out.
      num_classes: number of outputs.
      dtype: of the classifier; the rest is float32.

    Reference: Csurka et al. 2004, "Visual categorization with bags of keypoints"; Chatfield et al. 2011, "The devil is
      in the details: an evaluation of recent feature encoding methods".
    """

    descriptor: Mapping[str, Any]
    encoder: Mapping[str, Any] | None
    words: int = 64
    components: int = 0
    whiten: bool = False
    xy: float = 0.0
    pyramid: str = "1x1"
    weighting: Weighting = "region"
    keep_flat: bool = False
    num_classes: int = 10
    dtype: Any = jnp.float32

    @property
    def of_features(self) -> tuple[str, ...]:
        """The collections on which its features depend: they stay when the classifier changes."""
        return ("vocabulary",)

    def describe(self, x: Float[Array, "b h w c"]) -> Local:
        """Returns the descriptors of images in [0, 1], as they come; `mask` leaves out those that do not count."""
        describe = _chosen(classical.DESCRIPTORS, self.descriptor, "descriptor", "images")
        found = describe(x.astype(jnp.float32))
        if self.keep_flat or self.encoder is None:
            return found
        return found._replace(mask=found.mask & jnp.any(found.descriptors != 0, axis=-1))

    @nn.nowrap
    def prepare(
        self, projection: pca.Projection | None, descriptors: Float[Array, "b n d"], positions: Float[Array, "b n 2"]
    ) -> Float[Array, "b n e"]:
        """Returns descriptors as words are made of them: their components, and their places."""
        if projection is not None:
            descriptors = pca.project(projection, descriptors)
        return encoding.append_positions(descriptors, positions, self.xy) if self.xy else descriptors

    @nn.nowrap
    def make_encoder(self) -> encoding.Encoder:
        """Returns the encoder that `encoder` names."""
        return _chosen(classical.ENCODERS, self.encoder or {}, "encoder")()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> tuple[Float[Array, "b k"], Acts]:
        found = self.describe(x)
        if self.encoder is None:
            features = jnp.where(found.mask[..., None], found.descriptors, 0).reshape(x.shape[0], -1)
        else:
            encode = encoding.make(self.make_encoder(), self.pyramid, self.weighting)
            descriptors = self.prepare(
                self._projection(found.descriptors.shape[-1]), found.descriptors, found.positions
            )
            features = encode(self._vocabulary(descriptors.shape[-1]), descriptors, found.positions, found.mask)
        features = jax.lax.stop_gradient(features)
        logits = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="head")(features)
        return logits.astype(jnp.float32), {"features": features}

    def _projection(self, d: int) -> pca.Projection | None:
        if not self.components:
            return None
        if not 0 < self.components <= d:
            raise BadRequest(
                f"model.components is {self.components}; descriptors of {d} numbers have from 1 to {d} components."
            )
        arrays = {"mean": ((d,), 0.0), "axes": ((d, self.components), d**-0.5)}
        return pca.Projection(**self._learnt(arrays), variances=jnp.ones(self.components))

    def _vocabulary(self, d: int) -> Any:
        k, learns = self.words, self.make_encoder().learns
        if k < 1:
            raise BadRequest(f"model.words is {k}; it takes a number of at least 1.")
        if learns == "words":
            return kmeans.Words(
                **self._learnt({"centers": ((k, d), d**-0.5)}), counts=jnp.ones(k), **_progress(kmeans.Words)
            )
        found = self._learnt({"weights": ((k,), None), "means": ((k, d), d**-0.5), "variances": ((k, d), None)})
        return gmm.Mixture(**found, **_progress(gmm.Mixture))

    def _learnt(self, arrays: Mapping[str, tuple[tuple[int, ...], float | None]]) -> dict[str, Array]:
        """Returns variables by name, until they are learnt normal with that deviation, or 1 / their length for None."""

        def initial(shape: tuple[int, ...], deviation: float | None) -> Array:
            if deviation is None:
                return jnp.full(shape, 1 / shape[-1])
            return deviation * jax.random.normal(self.make_rng("params"), shape)

        return {
            name: self.variable("vocabulary", name, initial, shape, deviation).value
            for name, (shape, deviation) in arrays.items()
        }


def _progress(kind: Any) -> dict[str, Array]:
    """Returns what a vocabulary says of its learning, of one whose learning is over."""
    rest = {"inertia": jnp.zeros(()), "log_likelihood": jnp.zeros(()), "passes": jnp.array(0), "done": jnp.array(True)}
    return {name: value for name, value in rest.items() if name in kind._fields}


def _chosen(table: Mapping[str, Any], section: Mapping[str, Any], what: str, *given: str) -> Any:
    """Returns the function that a section names, with the section's arguments."""
    if "name" not in section:
        raise BadRequest(f"model.{what}.name is missing; there are: {', '.join(table)}.")
    function = choose(table, section["name"], f"model.{what}.name")
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in section.items() if k != "name"}
    check_kwargs(function, arguments, f"model.{what}", given=given)
    return functools.partial(function, **arguments)
