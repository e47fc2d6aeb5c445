"""grpc.health.v1, as an orchestrator asks it. That Watch tells of a shutdown is tested with the shutdown itself."""

from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support import servers


@pytest.fixture
def health(server: servers.ServerProcess) -> Iterator[health_pb2_grpc.HealthStub]:
    with grpc.insecure_channel(server.target) as channel:
        yield health_pb2_grpc.HealthStub(channel)


@pytest.mark.parametrize("service", ["", "inference.GRPCInferenceService", "vitforge.vision.v1.Vision"])
def test_the_server_and_each_of_its_services_are_serving(
    health: health_pb2_grpc.HealthStub, service: str
) -> None:
    answer = health.Check(health_pb2.HealthCheckRequest(service=service))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_service_that_is_not_there_is_not_found(health: health_pb2_grpc.HealthStub) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        health.Check(health_pb2.HealthCheckRequest(service="tiny.Service"))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


def test_watch_begins_with_the_present_state(health: health_pb2_grpc.HealthStub) -> None:
    watch = health.Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()
