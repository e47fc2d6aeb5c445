"""What can go wrong while a request is answered. Only `serving.service.status` knows which gRPC code each becomes.

ServingError
├── ModelNotFound       no such model or version
├── InvalidInput        a tensor or an image that the model cannot take
├── Overloaded          the queue is full: later, or elsewhere
├── ShuttingDown        the server drains: elsewhere
└── DeadlineExceeded    the answer would come too late
"""


class ServingError(Exception):
    """A request that is not answered; the message is for the caller and says nothing of our insides."""


class ModelNotFound(ServingError):
    """The repository serves no such model or version."""


class InvalidInput(ServingError):
    """The request's tensors or images are not what the model takes."""


class Overloaded(ServingError):
    """There is capacity, but others wait for it."""


class ShuttingDown(ServingError):
    """The server takes no new requests."""


class DeadlineExceeded(ServingError):
    """The request's time has passed."""
