"""Export: from a checkpoint to a bundle that was proven by the runtime that will serve it."""
