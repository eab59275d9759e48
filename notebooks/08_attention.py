# %% [markdown]
# # 8. Attention and the Transformer
#
# **Runs in about a minute on two cores.** Data: sentences that a rule writes in the notebook, English and German.
#
# A convolution looks at neighbours, always the same ones. But in *"the dog has seen the old cat"* the word that
# decides how to translate *"the"* may stand three words away, and in the next sentence elsewhere. Attention lets every
# token choose what it looks at. We build it step by step, with numbers that can be checked by hand, then train a
# Transformer with it and look at what it looked at.

# %%
from itertools import permutations

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import recvis_jax as rv
from recvis_jax.models import attention_patterns as patterns
from recvis_jax.models.attention import MultiHeadAttention
from recvis_jax.models.transformer import sinusoidal
from recvis_jax.operations import attention
from recvis_jax.vis import plot

# %% [markdown]
# ## A dictionary that answers softly
#
# A Python dictionary compares a *query* with its *keys* and returns the *value* of the one that is equal. Attention
# does the same with vectors, softly: every key answers a little, the more the better it fits.
#
# Three tokens, each with a query, a key and a value of two numbers (a row each):

# %%
Q = np.array([[1, 0], [0, 2], [1, 1]])
K = np.array([[1, 0], [0, 1], [1, 1]])
V = np.array([[10, 0], [0, 10], [5, 5]])
plot.numbers({"queries Q": Q, "keys K": K, "values V": V}, colours="Blues", size=0.5)

# %% [markdown]
# **Step 1: scores.** Entry (i, j) of $QK^T$ is the dot product of query i and key j. Token 1 asks for `(0, 2)`: the
# key `(1, 0)` does not fit at all, the other two fit equally well.
#
# **Step 2: scale** by $1/\sqrt{d}$, here $1/\sqrt 2$ (why is explained below).
#
# **Step 3: softmax**, row by row: the weights of a token are positive and sum to 1.

# %%
scores = Q @ K.T
assert scores.tolist() == [[1, 0, 1], [0, 2, 2], [1, 1, 2]]
scaled = scores / np.sqrt(2)
weights = np.exp(scaled) / np.exp(scaled).sum(1, keepdims=True)
np.testing.assert_allclose(weights.sum(1), 1)
steps = {"1. scores": scores.astype(float), "2. scaled": scaled, "3. weights": weights}
plot.numbers(steps, colours="Blues", size=0.6, form=".2f")

# %% [markdown]
# **Step 4: average the values** with these weights. Token 1 gets nearly the middle between the second and the third
# value, and a little of the first. In one line:
#
# $$\mathrm{attention}(Q, K, V) = \mathrm{softmax}\left(\frac{QK^T}{\sqrt{d}}\right) V$$
#
# The package computes the same numbers, for a batch and several heads at once.

# %%
out = weights @ V
shapes = lambda x: jnp.asarray(x, jnp.float32)[None, :, None]  # (tokens, d) -> (batch 1, tokens, heads 1, d)
theirs, their_weights = attention(shapes(Q), shapes(K), shapes(V))
np.testing.assert_allclose(theirs[0, :, 0], out, rtol=1e-5)
np.testing.assert_allclose(their_weights[0, 0], weights, rtol=1e-5)
plot.numbers({"weights": weights, "values V": V.astype(float), "4. output": out}, colours="Blues", size=0.6, form=".2f")

# %% [markdown]
# ## Why divide by the square root of d?
#
# The dot product of two random vectors of d numbers has variance d. With d = 256, scores of 16 are common, and
# $e^{16}$ against $e^{0}$ is everything against nothing: the softmax picks one token, and where it is that sharp its
# gradient is nearly 0. Divided by $\sqrt d$, the scores keep variance 1, however wide the tokens are. Below: the
# largest of 16 weights, the mean over many random queries. Without scaling it goes to 1.

# %%
rng = np.random.default_rng(0)
widths = [1, 4, 16, 64, 256, 1024]
dots = [np.einsum("bd,bnd->bn", rng.normal(size=(400, d)), rng.normal(size=(400, 16, d))) for d in widths]
spread = [x.std() for x in dots]
np.testing.assert_allclose(spread, np.sqrt(widths), rtol=0.1)
plain = [jax.nn.softmax(x).max(1).mean() for x in dots]
divided = [jax.nn.softmax(x / np.sqrt(d)).max(1).mean() for x, d in zip(dots, widths)]
assert plain[-1] > 0.95 and max(divided) < 0.35
fig, axes = plt.subplots(figsize=(5, 2.8), layout="constrained")
axes.semilogx(widths, plain, "o-", label="scores as they are")
axes.semilogx(widths, divided, "s-", label=r"scores / $\sqrt{d}$")
axes.set(xlabel="width d of queries and keys", ylabel="largest of 16 weights", ylim=(0, 1.05))
axes.legend()
plt.show()

# %% [markdown]
# ## Heads
#
# One softmax makes one average. A token may want two things at once (which noun does this article belong to? what is
# the verb?), so the layer cuts the width into *heads*, lets each attend for itself, and puts the results side by side.
# Queries, keys and values are three linear maps of the same tokens (**self-attention**), and a fourth map mixes the
# heads: $4(d^2 + d)$ parameters, whatever the number of heads and of tokens.

# %%
layer, tokens = MultiHeadAttention(heads=4), jax.random.normal(jax.random.key(0), (1, 6, 32))
variables = layer.init(jax.random.key(1), tokens)
mixed, of_heads = layer.apply(variables, tokens)
assert sum(x.size for x in jax.tree.leaves(variables)) == 4 * (32**2 + 32)
assert mixed.shape == (1, 6, 32) and of_heads.shape == (1, 4, 6, 6)
np.testing.assert_allclose(of_heads.sum(-1), 1, rtol=1e-5)
plot.grid(list(of_heads[0]), [f"head {i}" for i in range(4)], colours="Blues", limits=(0, 0.6))

# %% [markdown]
# Cross-attention is the same layer with queries from one sequence and keys and values from another: a German word asks
# the English sentence.
#
# ## Masks
#
# A mask forbids: its scores become $-\infty$, the weights 0. A decoder that writes from left to right must not see
# what it has not written yet (the *causal* mask). Long sequences afford only a part of all pairs; below are patterns
# of the Image Transformer and the Sparse Transformer for 16 tokens, seen as an image of 4x4 (blue: row may look at
# column).

# %%
masks = {
    "causal": patterns.causal(16),
    "local, blocks of 4": patterns.local_1d(16, block=4, memory=4),
    "local in 2D": patterns.local_2d(4, 4, block=(2, 2), memory=(1, 1)),
    "strided, 2 heads merged": patterns.strided(16, 4).any(0),
    "fixed, 2 heads merged": patterns.fixed(16, 4).any(0),
}
assert masks["causal"].sum() == 16 * 17 / 2
assert all((np.asarray(m) <= masks["causal"]).all() for name, m in masks.items() if "2D" not in name)
plot.grid([m.astype(float) for m in masks.values()], list(masks), colours="Blues", size=1.9)

# %% [markdown]
# That the mask holds can be tested without looking inside: change the last token, and nothing before it may change.

# %%
changed = tokens.at[:, -1].add(1.0)
masked = [layer.apply(variables, x, mask=patterns.causal(6))[0] for x in (tokens, changed)]
open_ = [layer.apply(variables, x)[0] for x in (tokens, changed)]
np.testing.assert_array_equal(masked[0][:, :-1], masked[1][:, :-1])
assert jnp.abs(open_[0] - open_[1])[:, :-1].max() > 0.01

# %% [markdown]
# ## Positions
#
# Nothing above knows the order of the tokens. If they are permuted, the outputs are permuted too, and that is all: for
# attention, *"dog bites man"* and *"man bites dog"* are the same set of words.

# %%
for order in list(permutations(range(6)))[::90]:
    shuffled = layer.apply(variables, tokens[:, order])[0]
    np.testing.assert_allclose(shuffled, mixed[:, order], atol=1e-5)

# %% [markdown]
# So the position is *added* to each token, as a vector of sines and cosines of different wavelengths (left picture: a
# row for each position). Like the hands of a clock, fast ones tell neighbours apart and slow ones tell early from
# late. The dot product of two positions depends only on their distance (right picture: constant along diagonals),
# which makes "two words back" an easy thing to ask for.

# %%
table = sinusoidal(64, 64)
similar = table @ table.T
np.testing.assert_allclose(similar[10, 13], similar[40, 43], rtol=1e-5)
np.testing.assert_allclose(np.diag(similar), 32, rtol=1e-5)  # sin^2 + cos^2, 32 times
plot.grid(
    [table, similar / 32],
    ["positions (rows) and sines", "dot products of positions / 32"],
    size=3,
    colours="RdBu",
    limits=(-1, 1),
)

# %% [markdown]
# ## The Transformer
#
# The rest is known: each attention and each small MLP is a branch `norm(x + f(x))`, a residual block as in part 7. The
# **encoder** layer has self-attention and an MLP. The **decoder** layer has causal self-attention, attention to the
# encoder's output, and an MLP. Embeddings and output layer share one matrix. For the base model of the paper (width
# 512, MLPs of 2048, 6 + 6 layers, 37,000 tokens) we count by hand and compare with the package. Attention is the
# smaller part.

# %%
d, hidden, vocabulary = 512, 2048, 37_000
of_attention, of_mlp, of_norm = 4 * (d**2 + d), 2 * d * hidden + hidden + d, 2 * d
encoder = of_attention + of_mlp + 2 * of_norm
decoder = 2 * of_attention + of_mlp + 3 * of_norm
by_hand = 6 * encoder + 6 * decoder + vocabulary * d
net = rv.models.create("transformer_base", vocabulary=vocabulary)
two = {name: jnp.ones((1, 3), int) for name in ("source", "target", "source_mask", "target_mask")}
traced = jax.eval_shape(lambda: net.init(jax.random.key(0), two, train=False))
assert sum(x.size for x in jax.tree.leaves(traced)) == by_hand
shares = {"attention": 18 * of_attention, "MLPs": 12 * of_mlp, "embedding": vocabulary * d}
print(f"{by_hand / 1e6:.1f} million parameters:", {name: f"{x / by_hand:.0%}" for name, x in shares.items()})

# %% [markdown]
# ## A translation
#
# We need a language that can be learnt in seconds, and yet needs attention. German helps: in *"der alte Mann hat
# **die** Katze **gesehen**"*, the participle goes to the end, and the article depends on the noun behind it (*den*
# Hund, *die* Katze, *das* Pferd) and on its role: the dog that sees is *der* Hund, the dog that is seen *den* Hund. A
# rule writes such sentences.

# %%
nouns = dict(dog="Hund m", fox="Fuchs m", bird="Vogel m", man="Mann m", cat="Katze f", cow="Kuh f")
nouns |= dict(woman="Frau f", mouse="Maus f", horse="Pferd n", child="Kind n", pig="Schwein n", sheep="Schaf n")
adjectives = {"": "", "old ": "alt", "young ": "jung", "big ": "dick", "small ": "klein", "white ": "weiß"}
verbs = {"seen": "gesehen", "found": "gefunden", "heard": "gehört", "washed": "gewaschen", "painted": "gemalt"}
articles = {"m": ("der", "den"), "f": ("die", "die"), "n": ("das", "das")}  # who does it, and to whom it is done


def phrase(rng, role):
    noun, adjective = rng.choice(list(nouns)), rng.choice(list(adjectives))
    german, gender = nouns[noun].split()
    ending = "en " if (gender, role) == ("m", 1) else "e "
    described = adjectives[adjective] + ending if adjective else ""
    return f"the {adjective}{noun}", f"{articles[gender][role]} {described}{german}"


def sentence(rng):
    (who, wer), (whom, wen), verb = phrase(rng, 0), phrase(rng, 1), rng.choice(list(verbs))
    return f"{who} has {verb} {whom}", f"{wer} hat {wen} {verbs[verb]}"


# %%
rng = np.random.default_rng(0)
pairs = list(dict.fromkeys(sentence(rng) for _ in range(4200)))  # each once
train, test = pairs[:-200], pairs[-200:]
for english, german in test[:4]:
    print(f"{english:45} {german}")

# %% [markdown]
# None of the 200 test sentences is among the others: what is learnt must be the grammar. Texts become numbers by
# *byte-pair encoding*: the most frequent pairs of neighbouring pieces are merged until, here, every word is one piece.

# %%
texts = rv.data.from_texts(train, test=test, text={"tokens": 600, "most": 14})
words = texts.info.vocabulary
print(words.pieces(words.encode("der alte Hund hat das Kind gesehen")))
assert len(words.encode("der alte Hund hat das Kind gesehen")) == 7

# %% [markdown]
# One encoder layer, one decoder layer, 64 numbers per token: the paper's model 900 times smaller. It is trained as in
# the paper: given the English sentence and the German words so far, predict the next word.

# %%
small = dict(width=64, heads=4, encoder_depth=1, decoder_depth=1, hidden=128, dropout=0.0)
net = rv.models.create("transformer_base", vocabulary=words.size, **small)
task = rv.task(net, texts, "translate", label_smoothing=0.0)
rate = optax.warmup_cosine_decay_schedule(0.0, 4e-3, 50, 500)
run = rv.fit(net, texts, optax.adam(rate), steps=500, batch_size=64, task=task, progress=False)
measured = run.evaluate("test")
exact = np.mean([a == b for a, b in zip(run.translate([e for e, _ in test], beams=1), [g for _, g in test])])
print(f"BLEU {measured['bleu']:.1f}; {exact:.0%} of unseen sentences are translated without a fault")
assert measured["bleu"] > 95 and exact > 0.9

# %% [markdown]
# ### What it looked at
#
# Each row is a German word that is written, each column an English word; dark means that the word was written with a
# look there. The participle at the end looks back at its English form in the middle, and the articles look at the
# *nouns*, which tell their gender.

# %%
english = "the old woman has found the small dog"
german = run.translate([english], beams=1)[0]
assert german == "die alte Frau hat den kleinen Hund gefunden"
seen = run.attended(english, german)
written = [*seen.rows[1:], "<end>"]  # row i is the step that writes word i
maps = np.stack(list(seen.maps.values()))
fig, axes = plt.subplots(figsize=(5, 4.6), layout="constrained")
axes.imshow(maps.mean(0), cmap="Blues", vmin=0)
axes.set_xticks(range(len(seen.columns)), seen.columns, rotation=60, ha="right")
axes.set_yticks(range(len(written)), written)
axes.set_title("mean of the heads")
plt.show()

# %% [markdown]
# The heads one by one. They share the work, though nobody told them to: in one of them each article looks at its noun.

# %%
fig, places = plt.subplots(1, 4, figsize=(11, 3.4), layout="constrained", sharey=True)
for i, axes in enumerate(places):
    axes.imshow(maps[i], cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(seen.columns)), seen.columns, rotation=90)
    axes.set_yticks(range(len(written)), written)
    axes.set_title(f"head {i}")
plt.show()

# %% [markdown]
# The rule knows which words belong together, so the maps can be judged: the noun *Hund* should be written with a look
# at *dog*, *gefunden* at *found*.

# %%
of = lambda word, source: maps[:, written.index(word)].mean(0)[seen.columns.index(source)]
noun = seen.columns.index("␣dog")
assert maps[:, written.index("␣den"), noun].max() > 3 / len(seen.columns)  # in one of the heads
for word, source in (("␣Hund", "␣dog"), ("␣gefunden", "␣found"), ("␣Frau", "␣woman")):
    print(f"{word} looks at {source} with weight {of(word, source):.2f}; an equal share is {1 / len(seen.columns):.2f}")
    assert of(word, source) > 2 / len(seen.columns)

# %% [markdown]
# ### One step of the decoder
#
# The decoder gives probabilities for the next word. After *"die alte Frau hat"* it must choose the article, before the
# noun is written: it has to look ahead in the English sentence. If *dog* becomes *cat* or *pig*, the answer changes.

# %%
rows = []
for noun in ("dog", "cat", "pig"):
    source, target = words.encode(f"the old woman has found the small {noun}"), words.encode("die alte Frau hat den")
    ones = lambda x: np.ones((1, len(x)), bool)
    given = {"source": source[None], "target": target[None], "source_mask": ones(source), "target_mask": ones(target)}
    last = run.run.model.apply(run.variables, given, train=False)[0][0, -1]  # predicts the fifth word
    rows.append(jax.nn.softmax(last)[words.encode("die den die das")[1:]])
assert np.argmax(rows, 1).tolist() == [0, 1, 2]
plot.numbers({"p(den), p(die), p(das) for dog, cat, pig": np.array(rows)}, colours="Blues", size=0.8, form=".2f")

# %% [markdown]
# ## To try
#
# * Train with `heads=1`. Are the articles still right?
# * `attention="uniform"` gives all tokens equal weights. On this little language that net translates without a fault,
#   too: a word is added to its position, the MLPs bind both, and of nine words a mean says enough. Join sentences by
#   "and", so that a word may be anywhere, until it breaks.
# * Write sentences with two clauses, test on longer ones than were trained on. Where does it break: positions, or
#   grammar?
# * `rv.generation.beam_search` keeps several beginnings: `run.translate(..., beams=4)`. Does it help here? When would
#   it?
# * Real texts: `python -m recvis_jax.prepare --dataset=libreoffice_de`, then `configs/libreoffice/transformer.py`.
#
# Nothing above is about words: `configs/imagenet/vit_s16.py` feeds patches of images to the same layers.
