"""TF Serving's own configuration files: read here by the server, and checked in `serving/`.

The protos of batching, monitoring and TLS are not in the tensorflow-serving-api package; their
few fields are declared below. `FLAGS` are the flags of tensorflow_model_server 2.20
(model_servers/main.cc), for checking commands in deployments.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)
from google.protobuf.message import Message
from tensorflow_serving.config import model_server_config_pb2

from tfllm.config import build_from_fields
from tfllm.errors import SettingError
from tfllm.serving.schema import Batching, ModelEntry, RequestError, VersionPolicy, invalid

PLATFORM = "tensorflow"
POLICIES = {"latest": "latest", "all": "all", "specific": "specific"}

# message -> field -> (number, type). A type in capitals is a plain one; `repeated` stands before.
MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "BatchingParameters": {
        "max_batch_size": (1, "google.protobuf.Int64Value"),
        "batch_timeout_micros": (2, "google.protobuf.Int64Value"),
        "max_enqueued_batches": (3, "google.protobuf.Int64Value"),
        "num_batch_threads": (4, "google.protobuf.Int64Value"),
        "thread_pool_name": (5, "google.protobuf.StringValue"),
        "allowed_batch_sizes": (6, "repeated INT64"),
        "pad_variable_length_inputs": (7, "BOOL"),
        "enable_large_batch_splitting": (8, "google.protobuf.BoolValue"),
        "max_execution_batch_size": (9, "google.protobuf.Int64Value"),
    },
    "PrometheusConfig": {"enable": (1, "BOOL"), "path": (2, "STRING")},
    "MonitoringConfig": {"prometheus_config": (1, "tensorflow.serving.PrometheusConfig")},
    "SSLConfig": {
        "server_key": (1, "STRING"),
        "server_cert": (2, "STRING"),
        "custom_ca": (3, "STRING"),
        "client_verify": (4, "BOOL"),
    },
}

FLAGS = frozenset(
    """
    port grpc_socket_path rest_api_port rest_api_num_threads rest_api_timeout_in_ms
    rest_api_enable_cors_support enable_batching allow_version_labels_for_unavailable_models
    batching_parameters_file enable_per_model_batching_parameters model_config_file
    model_config_file_poll_wait_seconds model_name model_base_path num_load_threads
    num_unload_threads max_num_load_retries load_retry_interval_micros
    file_system_poll_wait_seconds flush_filesystem_caches tensorflow_session_parallelism
    tensorflow_session_config_file tensorflow_intra_op_parallelism tensorflow_inter_op_parallelism
    use_alts_credentials ssl_config_file platform_config_file per_process_gpu_memory_fraction
    saved_model_tags grpc_channel_arguments grpc_max_threads enable_model_warmup
    num_request_iterations_for_warmup version monitoring_config_file
    remove_unused_fields_from_bundle_metagraph prefer_tflite_model num_tflite_pools
    num_tflite_interpreters_per_pool enable_signature_method_name_check
    xla_cpu_compilation_enabled xla_gpu_compilation_enabled enable_profiler
    thread_pool_factory_config_file mixed_precision skip_initialize_tpu
    enable_grpc_healthcheck_service enable_serialization_as_tensor_content
    """.split()
)


M = TypeVar("M", bound=Message)


def read_models(path: str | Path) -> list[ModelEntry]:
    """Return the models of a `models.config` file.

    Raises:
        SettingError: The file cannot be used; the message names file and line.
    """
    config = read_text_proto(path, model_server_config_pb2.ModelServerConfig())
    if config.WhichOneof("config") != "model_config_list":
        raise SettingError(f"{path}: it needs a model_config_list {{ config {{ ... }} }}.")
    try:
        return entries(config)
    except RequestError as error:
        raise SettingError(f"{path}: {error.message}.") from None


def entries(config: model_server_config_pb2.ModelServerConfig) -> list[ModelEntry]:
    """Return a ModelServerConfig as plain settings. Raises INVALID_ARGUMENT as TF Serving does."""
    models: list[ModelEntry] = []
    for model in config.model_config_list.config:
        if any(model.name == other.name for other in models):
            raise invalid(f"Illegal to list model {model.name} multiple times in config list")
        if not model.base_path.startswith("/"):
            raise invalid(
                f"Expected model {model.name} to have an absolute path or URI; got "
                f"base_path()={model.base_path}"
            )
        if model.model_platform != PLATFORM:
            raise invalid(
                f"Model {model.name} requests unsupported platform {model.model_platform!r}; "
                f"write model_platform: '{PLATFORM}'"
            )
        if not model.name or set(model.name) & set("/:"):
            raise invalid(f"'{model.name}' cannot be a model's name: no path could hold it")
        models.append(
            ModelEntry(
                name=model.name,
                base_path=model.base_path,
                policy=_policy(model.model_version_policy),
                labels=dict(model.version_labels),
            )
        )
    return models


def read_batching(path: str | Path) -> Batching:
    """Return the settings of `batching_parameters.txt` that this server has.

    Raises:
        SettingError: The file cannot be used; the message names file and line.
    """
    proto = read_text_proto(path, new("BatchingParameters"))
    largest = proto.max_batch_size.value if proto.HasField("max_batch_size") else 32
    sizes = tuple(proto.allowed_batch_sizes) or Batching().allowed_batch_sizes
    if list(sizes) != sorted(set(sizes)) or sizes[0] < 1:
        raise SettingError(f"{path}: allowed_batch_sizes must rise from 1 on.")
    if proto.allowed_batch_sizes and sizes[-1] != largest:
        raise SettingError(
            f"{path}: the last of allowed_batch_sizes must be max_batch_size ({largest})."
        )
    threads = proto.num_batch_threads.value if proto.HasField("num_batch_threads") else 2
    waiting = proto.max_enqueued_batches.value if proto.HasField("max_enqueued_batches") else None
    fields = {
        "max_batch_size": largest,
        "num_batch_threads": threads,
        "max_enqueued_batches": waiting,
    }
    return build_from_fields(Batching, {name: f"{path}: {name}" for name in fields},
                allowed_batch_sizes=sizes, **fields)  # fmt: skip


def read_text_proto(path: str | Path, message: M) -> M:
    """Read a text proto file.

    Args:
        path: The file.
        message: An empty proto, which is filled.

    Returns:
        `message`.

    Raises:
        SettingError: The file cannot be read; the message names file and line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise SettingError(f"Cannot read '{path}': {reason}. Check the path.") from None
    try:
        return text_format.Parse(text, message)
    except text_format.ParseError as error:
        line = f":{error.GetLine()}" if error.GetLine() else ""
        reason = str(error).split(" : ", 1)[-1].strip()
        raise SettingError(f"{path}{line}: {reason}") from None


def new(name: str) -> Any:
    """Return an empty message of one of MESSAGES."""
    descriptor = _pool().FindMessageTypeByName(f"tensorflow.serving.{name}")
    return message_factory.GetMessageClass(descriptor)()


def _policy(proto: Any) -> VersionPolicy:
    kind = proto.WhichOneof("policy_choice")
    if kind == "all":
        return VersionPolicy(kind="all")
    if kind == "specific":
        return VersionPolicy(kind="specific", versions=tuple(proto.specific.versions))
    return VersionPolicy(kind="latest", count=max(proto.latest.num_versions, 1))


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(
        name="tfllm/serving/configuration.proto", package="tensorflow.serving", syntax="proto3",
        dependency=["google/protobuf/wrappers.proto"],
    )  # fmt: skip
    field_type = descriptor_pb2.FieldDescriptorProto
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field_name, (number, kind) in fields.items():
            plain = kind.removeprefix("repeated ")
            repeated = field_type.LABEL_REPEATED if plain != kind else field_type.LABEL_OPTIONAL
            field = message.field.add(name=field_name, number=number, label=repeated)
            if plain.isupper() or plain == "INT64":
                field.type = getattr(field_type, f"TYPE_{plain}")
            else:
                field.type, field.type_name = field_type.TYPE_MESSAGE, f".{plain}"
    pool.Add(file)
    return pool
