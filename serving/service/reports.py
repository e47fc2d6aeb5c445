"""What the inference protocol says of a model: its metadata, its configuration in Triton's terms, and its statistics."""

from collections.abc import Sequence

from protos import bundle_pb2, inference_pb2
from serving.service.models import ServedModel
from serving.telemetry import BatchTally, Tally


def model_metadata(model: ServedModel, versions: Sequence[str]) -> inference_pb2.ModelMetadataResponse:
    """The tensors of `model`, with the batch as dimension -1, and the served `versions` of its name."""
    return inference_pb2.ModelMetadataResponse(
        name=model.name,
        versions=versions,
        platform=model.platform,
        inputs=map(_tensor, model.inputs),
        outputs=map(_tensor, model.outputs),
    )


def model_config(model: ServedModel) -> inference_pb2.ModelConfigResponse:
    """`model` as a Triton configuration: dimensions without the batch, which `max_batch_size` stands for."""
    limits = model.batcher.limits
    config = inference_pb2.ModelConfig(
        name=model.name,
        platform=model.platform,
        backend=model.platform.partition("_")[0],
        max_batch_size=limits.max_batch_size,
        version_policy=inference_pb2.ModelVersionPolicy(all=inference_pb2.ModelVersionPolicy.All()),
        input=[
            inference_pb2.ModelInput(
                name=spec.name, data_type=f"TYPE_{spec.datatype}", format="FORMAT_NONE", dims=spec.shape[1:]
            )
            for spec in model.inputs
        ],
        output=[
            inference_pb2.ModelOutput(name=spec.name, data_type=f"TYPE_{spec.datatype}", dims=spec.shape[1:])
            for spec in model.outputs
        ],
        instance_group=[
            inference_pb2.ModelInstanceGroup(name=model.name, count=limits.concurrency, kind="KIND_CPU")
        ],
        dynamic_batching=inference_pb2.ModelDynamicBatching(
            preferred_batch_size=[limits.max_batch_size],
            max_queue_delay_microseconds=round(limits.max_delay_s * 1e6),
        ),
        model_transaction_policy=inference_pb2.ModelTransactionPolicy(decoupled=False),
    )
    return inference_pb2.ModelConfigResponse(config=config)


def model_statistics(model: ServedModel) -> inference_pb2.ModelStatistics:
    """What `model` has done since it was loaded."""
    counted = model.telemetry
    return inference_pb2.ModelStatistics(
        name=model.name,
        version=model.version,
        last_inference=counted.last_inference_ms,
        inference_count=counted.inference_count,
        execution_count=counted.execution_count,
        inference_stats=inference_pb2.InferStatistics(
            success=_duration(counted.success),
            fail=_duration(counted.fail),
            queue=_duration(counted.queue),
            compute_input=_duration(counted.compute_input),
            compute_infer=_duration(counted.compute_infer),
            compute_output=_duration(counted.compute_output),
        ),
        batch_stats=[_batch(size, counted.batches[size]) for size in sorted(counted.batches)],
    )


def _tensor(spec: bundle_pb2.TensorSpec) -> inference_pb2.ModelMetadataResponse.TensorMetadata:
    return inference_pb2.ModelMetadataResponse.TensorMetadata(
        name=spec.name, datatype=spec.datatype, shape=spec.shape
    )


def _batch(size: int, tally: BatchTally) -> inference_pb2.InferBatchStatistics:
    return inference_pb2.InferBatchStatistics(
        batch_size=size,
        compute_input=_duration(tally.compute_input),
        compute_infer=_duration(tally.compute_infer),
        compute_output=_duration(tally.compute_output),
    )


def _duration(tally: Tally) -> inference_pb2.StatisticDuration:
    return inference_pb2.StatisticDuration(count=tally.count, ns=tally.ns)
