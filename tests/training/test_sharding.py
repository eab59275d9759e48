"""How states and batches lie on a mesh, on paper."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from recvis_jax import errors, trees
from recvis_jax.training import processes, sharding


def leaf(*shape):
    return jax.ShapeDtypeStruct(shape, np.float32)


STATE = {
    "params": {
        "block0": {
            "attention": {"query": {"kernel": leaf(64, 64), "bias": leaf(64)}, "out": {"kernel": leaf(64, 64)}},
            "mlp": {"fc1": {"kernel": leaf(64, 256)}, "fc2": {"kernel": leaf(256, 64), "bias": leaf(64)}},
        },
        "blocks": {"mlp": {"fc1": {"kernel": leaf(12, 64, 256)}}},
        "head": {"kernel": leaf(64, 10), "bias": leaf(10)},
        "odd": leaf(35, 77),
        "stage1_block1": {"conv1": {"kernel": leaf(3, 3, 16, 32)}, "conv2": {"kernel": leaf(3, 3, 32, 32)}},
    },
    "mu": {"block0": {"mlp": {"fc1": {"kernel": leaf(64, 256)}}}},
    "step": leaf(),
}


def specs(strategy, rules=(), **sizes):
    made = sharding.make_layout(STATE, sharding.make_mesh(strategy=strategy, **sizes), strategy, rules)
    flat = jax.tree.leaves(made.specs, is_leaf=lambda x: isinstance(x, P))
    return dict(zip(trees.flatten(STATE), flat, strict=True)), made


def test_replicate_splits_nothing():
    found, made = specs("replicate")
    assert set(found.values()) == {P()} and made.whole == () and made.mesh.shape["data"] == len(jax.devices())


def test_fsdp_splits_the_longest_dimension_that_divides():
    found, made = specs("fsdp", fsdp=8)
    assert found["params/block0/mlp/fc1/kernel"] == P(None, "fsdp")
    assert found["params/block0/mlp/fc2/kernel"] == P("fsdp")
    assert found["params/blocks/mlp/fc1/kernel"] == P(None, None, "fsdp")
    assert found["mu/block0/mlp/fc1/kernel"] == P(None, "fsdp")
    assert found["params/head/bias"] == P() and found["step"] == P()  # small
    assert found["params/odd"] == P() and made.whole == ("params/odd",)
    assert "params/odd" in sharding.describe(made, STATE)


def test_tensor_splits_columns_then_rows():
    found, _ = specs("tensor", data=2, fsdp=2, model=2)
    assert found["params/block0/attention/query/kernel"] == P("fsdp", "model")
    assert found["params/block0/attention/query/bias"] == P("model")
    assert found["params/block0/attention/out/kernel"] == P("model", "fsdp")
    assert found["params/block0/mlp/fc2/kernel"] == P("model", "fsdp")
    assert found["params/blocks/mlp/fc1/kernel"] == P(None, "fsdp", "model")  # the blocks are not split
    assert found["mu/block0/mlp/fc1/kernel"] == P("fsdp", "model")
    assert found["params/stage1_block1/conv1/kernel"] == P(None, None, "fsdp", "model")
    assert found["params/stage1_block1/conv2/kernel"] == P(None, None, "model", "fsdp")


def test_rules_of_a_user_come_first():
    found, _ = specs("tensor", [("head/kernel$", ("model", None)), ("fc1/kernel$", (None, None))], model=8)
    assert found["params/head/kernel"] == P("model") and found["params/block0/mlp/fc1/kernel"] == P()
    with pytest.raises(errors.BadRequest, match=r"haed.*matches none"):
        specs("tensor", [("haed", ("model",))], model=8)
    for wrong in (("head",), ("(", ("model",)), ("head", ("rows",)), ("head", ("data",))):
        with pytest.raises(errors.BadRequest, match=r"sharding\.rules"):
            sharding.check_rules([wrong])


def test_bytes_of_a_device():
    state = {"a": leaf(1024, 8), "b": leaf(5)}
    made = sharding.make_layout(state, sharding.make_mesh(strategy="fsdp", fsdp=8), "fsdp")
    local = made.shardings["a"].shard_shape((1024, 8)), made.shardings["b"].shard_shape((5,))
    assert local == ((128, 8), (5,))


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(strategy="replicate", fsdp=2), "splits nothing under 'replicate'"),
        (dict(strategy="fsdp", model=2), "splits nothing under 'fsdp'"),
        (dict(strategy="fsdp", fsdp=3), "does not fit 8 device"),
        (dict(strategy="tensor", data=2, fsdp=2, model=4), "does not fit 8 device"),
        (dict(strategy="fsdp", fsdp=0), "does not fit"),
        (dict(strategy="fspd"), "fsdp"),
    ],
)
def test_meshes_that_cannot_be(given, message):
    with pytest.raises(errors.BadRequest, match=message):
        sharding.make_mesh(**given)


def test_what_is_not_asked_for_goes_to_the_strategys_axis():
    def shape(**kw):
        return tuple(sharding.make_mesh(**kw).shape.values())

    assert shape() == (8, 1, 1) and shape(strategy="fsdp") == (1, 8, 1) and shape(strategy="tensor") == (1, 1, 8)
    assert shape(strategy="fsdp", fsdp=4) == (2, 4, 1) and shape(strategy="fsdp", data=4) == (4, 2, 1)
    assert shape(strategy="tensor", model=2) == (4, 1, 2) and shape(strategy="tensor", fsdp=2, data=2) == (2, 2, 2)


def test_processes_that_split_layers_read_the_same_images():
    def grid(processes, each, *shape):
        devices = [SimpleNamespace(process_index=p) for p in range(processes) for _ in range(each)]
        return sharding.parts_by_process(np.array(devices).reshape(shape))

    assert grid(2, 4, 8, 1, 1) == {0: [0, 1, 2, 3], 1: [4, 5, 6, 7]}
    assert grid(2, 4, 1, 4, 2) == {0: [0, 1], 1: [2, 3]}
    assert grid(4, 2, 2, 1, 4) == {0: [0], 1: [0], 2: [1], 3: [1]}


def test_what_started_a_process():
    assert processes.detect({}) is None and processes.detect({"JAX_PLATFORMS": "cpu"}) is None
    assert processes.detect({"SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}) == "Slurm"
    assert processes.detect({"SLURM_NTASKS": "2"}) is None  # a batch script
    assert processes.detect({"SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"}) is None
    assert processes.detect({"OMPI_COMM_WORLD_SIZE": "4"}) == "Open MPI"
