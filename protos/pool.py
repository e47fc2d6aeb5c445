"""A descriptor pool for our own copy of the package `inference`.

Other clients of the same protocol (tritonclient, KServe) register these names in protobuf's default pool; a second registration
there would end the process that imports both. Generated code of inference.proto is made to use this pool instead.
"""

from google.protobuf import descriptor_pool

POOL = descriptor_pool.DescriptorPool()


def Default() -> descriptor_pool.DescriptorPool:  # the name that generated code calls  # noqa: N802
    """The pool of this package."""
    return POOL
