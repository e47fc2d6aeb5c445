"""The contracts that cross between rooms and machines: the wire and the bundle manifest. Imports nothing of ours."""
