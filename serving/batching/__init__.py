"""Dynamic batching: many small requests become few batches, and every row finds its way back to its caller.

A service hands rows to a `Batcher`; the batcher hands batches to a function that runs the model. It is plain asyncio and
numpy: it knows neither gRPC, nor a runtime, nor a bundle.
"""

from serving.batching.batcher import Answer, Batcher, BatchLimits, BatchRecord

__all__ = ["Answer", "BatchLimits", "BatchRecord", "Batcher"]
