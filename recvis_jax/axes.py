"""Names of the axes along which a batch is split, for models and training."""

# The axis of functions mapped by `pmap`, and the first axis of a mesh.
DATA_AXIS = "data"

# Axes of a mesh along which `jit` splits the batch.
BATCH_AXES = (DATA_AXIS, "fsdp")
