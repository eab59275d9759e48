"""Names of the axes over which a batch is split, for models and training alike."""

# Of functions mapped by `pmap`, and the first of a mesh.
DATA_AXIS = "data"

# Of a mesh, over which `jit` splits the batch.
BATCH_AXES = (DATA_AXIS, "fsdp")
