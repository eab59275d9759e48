"""The state, the optimizer, the step, and the loop that runs it."""
