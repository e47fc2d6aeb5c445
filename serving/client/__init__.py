"""The client: pictures to a server, labels back. It needs grpcio, protobuf, numpy and absl-py, and neither jax nor a runtime.

    from serving.client import VisionClient

    with VisionClient("edge-box:8001") as client:
        [labels] = client.classify(["digit.png"], model="digits", top_k=3)
        print(labels[0].name, labels[0].probability)

`python -m serving.client` does the same from the command line.
"""

from serving.client.errors import (
    ClientError,
    Invalid,
    NotFound,
    Overloaded,
    ServerFault,
    TimedOut,
    Unavailable,
)
from serving.client.vision import Label, ModelMetadata, TensorMetadata, VisionClient

__all__ = [
    "ClientError",
    "Invalid",
    "Label",
    "ModelMetadata",
    "NotFound",
    "Overloaded",
    "ServerFault",
    "TensorMetadata",
    "TimedOut",
    "Unavailable",
    "VisionClient",
]
