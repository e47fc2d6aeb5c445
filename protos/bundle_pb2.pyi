from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Manifest(_message.Message):
    __slots__ = ("format_version", "name", "created_by", "description", "inputs", "outputs", "preprocessing", "labels", "models", "batch_buckets", "provenance", "measurements", "digests", "tokeniser", "logit_scale")
    class DigestsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    FORMAT_VERSION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CREATED_BY_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSING_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    BATCH_BUCKETS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    MEASUREMENTS_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    TOKENISER_FIELD_NUMBER: _ClassVar[int]
    LOGIT_SCALE_FIELD_NUMBER: _ClassVar[int]
    format_version: int
    name: str
    created_by: str
    description: _struct_pb2.Struct
    inputs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    outputs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    preprocessing: Preprocessing
    labels: _containers.RepeatedScalarFieldContainer[str]
    models: _containers.RepeatedCompositeFieldContainer[ModelFile]
    batch_buckets: _containers.RepeatedScalarFieldContainer[int]
    provenance: Provenance
    measurements: _containers.RepeatedCompositeFieldContainer[Measurement]
    digests: _containers.ScalarMap[str, str]
    tokeniser: Tokeniser
    logit_scale: float
    def __init__(self, format_version: _Optional[int] = ..., name: _Optional[str] = ..., created_by: _Optional[str] = ..., description: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., inputs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., preprocessing: _Optional[_Union[Preprocessing, _Mapping]] = ..., labels: _Optional[_Iterable[str]] = ..., models: _Optional[_Iterable[_Union[ModelFile, _Mapping]]] = ..., batch_buckets: _Optional[_Iterable[int]] = ..., provenance: _Optional[_Union[Provenance, _Mapping]] = ..., measurements: _Optional[_Iterable[_Union[Measurement, _Mapping]]] = ..., digests: _Optional[_Mapping[str, str]] = ..., tokeniser: _Optional[_Union[Tokeniser, _Mapping]] = ..., logit_scale: _Optional[float] = ...) -> None: ...

class TensorSpec(_message.Message):
    __slots__ = ("name", "datatype", "shape", "values_below")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    VALUES_BELOW_FIELD_NUMBER: _ClassVar[int]
    name: str
    datatype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    values_below: int
    def __init__(self, name: _Optional[str] = ..., datatype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., values_below: _Optional[int] = ...) -> None: ...

class Preprocessing(_message.Message):
    __slots__ = ("color", "height", "width", "resize", "method", "antialias", "crop_fraction", "mean", "std", "layout", "rounding")
    COLOR_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    RESIZE_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    ANTIALIAS_FIELD_NUMBER: _ClassVar[int]
    CROP_FRACTION_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    STD_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    ROUNDING_FIELD_NUMBER: _ClassVar[int]
    color: str
    height: int
    width: int
    resize: str
    method: str
    antialias: bool
    crop_fraction: float
    mean: _containers.RepeatedScalarFieldContainer[float]
    std: _containers.RepeatedScalarFieldContainer[float]
    layout: str
    rounding: str
    def __init__(self, color: _Optional[str] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., resize: _Optional[str] = ..., method: _Optional[str] = ..., antialias: bool = ..., crop_fraction: _Optional[float] = ..., mean: _Optional[_Iterable[float]] = ..., std: _Optional[_Iterable[float]] = ..., layout: _Optional[str] = ..., rounding: _Optional[str] = ...) -> None: ...

class Tokeniser(_message.Message):
    __slots__ = ("kind", "max_tokens", "lower_case", "vocab_file")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOWER_CASE_FIELD_NUMBER: _ClassVar[int]
    VOCAB_FILE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    max_tokens: int
    lower_case: bool
    vocab_file: str
    def __init__(self, kind: _Optional[str] = ..., max_tokens: _Optional[int] = ..., lower_case: bool = ..., vocab_file: _Optional[str] = ...) -> None: ...

class ModelFile(_message.Message):
    __slots__ = ("file", "runtime", "precision", "required_cpu_features", "tolerance")
    FILE_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_CPU_FEATURES_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    file: str
    runtime: str
    precision: str
    required_cpu_features: _containers.RepeatedScalarFieldContainer[str]
    tolerance: Tolerance
    def __init__(self, file: _Optional[str] = ..., runtime: _Optional[str] = ..., precision: _Optional[str] = ..., required_cpu_features: _Optional[_Iterable[str]] = ..., tolerance: _Optional[_Union[Tolerance, _Mapping]] = ...) -> None: ...

class Tolerance(_message.Message):
    __slots__ = ("max_abs_difference", "min_top1_agreement")
    MAX_ABS_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    MIN_TOP1_AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    max_abs_difference: float
    min_top1_agreement: float
    def __init__(self, max_abs_difference: _Optional[float] = ..., min_top1_agreement: _Optional[float] = ...) -> None: ...

class Provenance(_message.Message):
    __slots__ = ("stage", "config_text", "config_hash", "weights_hash", "teacher_hash", "calibration_hash", "params", "macs")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    CONFIG_TEXT_FIELD_NUMBER: _ClassVar[int]
    CONFIG_HASH_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_HASH_FIELD_NUMBER: _ClassVar[int]
    TEACHER_HASH_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_HASH_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    MACS_FIELD_NUMBER: _ClassVar[int]
    stage: str
    config_text: str
    config_hash: str
    weights_hash: str
    teacher_hash: str
    calibration_hash: str
    params: int
    macs: int
    def __init__(self, stage: _Optional[str] = ..., config_text: _Optional[str] = ..., config_hash: _Optional[str] = ..., weights_hash: _Optional[str] = ..., teacher_hash: _Optional[str] = ..., calibration_hash: _Optional[str] = ..., params: _Optional[int] = ..., macs: _Optional[int] = ...) -> None: ...

class Measurement(_message.Message):
    __slots__ = ("name", "value", "low", "high", "unit", "where")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    low: float
    high: float
    unit: str
    where: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., unit: _Optional[str] = ..., where: _Optional[str] = ...) -> None: ...
