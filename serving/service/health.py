"""grpc.health.v1 for orchestrators: Check and Watch, for the server ("") and each of its services by name."""

import asyncio

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

SERVICES = ("inference.GRPCInferenceService", "vitforge.vision.v1.Vision")
# A watcher that does not read holds up whoever tells it; a drain must not wait for it longer than this.
_TELL_S = 1.0


class Health:
    """What the server says of its own health: SERVING from the start, NOT_SERVING for good once it drains."""

    def __init__(self) -> None:
        self._servicer = health.aio.HealthServicer()

    async def register(self, server: grpc.aio.Server) -> None:
        """Adds the health service to `server`."""
        for name in ("", *SERVICES):
            await self._servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def stop_serving(self) -> None:
        """Tells everybody who asks or watches that the server takes no more work."""
        try:
            await asyncio.wait_for(self._servicer.enter_graceful_shutdown(), _TELL_S)
        except TimeoutError:
            return
