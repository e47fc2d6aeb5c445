"""The scores that Torch-Pruning is tried with: named here for the side that asks, and for the environment that answers."""

METHODS = ("l2", "taylor", "hessian")
