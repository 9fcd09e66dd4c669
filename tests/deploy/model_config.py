"""The part of Triton's ModelConfig message that our files use, to read config.pbtxt as strictly as the server does.

Field names and types as NVIDIA documents them; numbers are ours, since the text form does not use them. The tests that start
a server read the same files with the real definition.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

PACKAGE = "inference"
KINDS: dict[str, int] = {"string": 9, "int32": 5, "int64": 3, "uint32": 13, "uint64": 4, "bool": 8}
ENUMS = {
    "DataType": ("TYPE_INVALID", "TYPE_STRING", "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32", "TYPE_BF16"),
    "Kind": ("KIND_AUTO", "KIND_GPU", "KIND_CPU"),
}
MESSAGES: dict[str, dict[str, str]] = {
    "Input": {"name": "string", "data_type": "DataType", "dims": "int64*", "optional": "bool", "allow_ragged_batch": "bool"},
    "Output": {"name": "string", "data_type": "DataType", "dims": "int64*"},
    "InstanceGroup": {"name": "string", "kind": "Kind", "count": "int32", "gpus": "int32*", "profile": "string*"},
    "QueuePolicy": {"default_timeout_microseconds": "uint64", "max_queue_size": "uint32"},
    "Batching": {"preferred_batch_size": "int32*", "max_queue_delay_microseconds": "uint64", "default_queue_policy": "QueuePolicy"},
    "TransactionPolicy": {"decoupled": "bool"},
    "WarmupInput": {"data_type": "DataType", "dims": "int64*", "zero_data": "bool", "random_data": "bool", "input_data_file": "string"},
    "WarmupInputsEntry": {"key": "string", "value": "WarmupInput"},
    "Warmup": {"name": "string", "batch_size": "uint32", "inputs": "WarmupInputsEntry*", "count": "uint32"},
    "Parameter": {"string_value": "string"},
    "ParametersEntry": {"key": "string", "value": "Parameter"},
    "ModelConfig": {
        "name": "string",
        "platform": "string",
        "backend": "string",
        "max_batch_size": "int32",
        "input": "Input*",
        "output": "Output*",
        "instance_group": "InstanceGroup*",
        "default_model_filename": "string",
        "dynamic_batching": "Batching",
        "model_transaction_policy": "TransactionPolicy",
        "model_warmup": "Warmup*",
        "parameters": "ParametersEntry*",
    },
}


def read_config(text: str) -> Any:
    """Raises ``text_format.ParseError`` where a field is unknown, given twice or of another type."""
    return text_format.Parse(text, _message()())


def _message() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="model_config_subset.proto", package=PACKAGE, syntax="proto3")
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), 1):
            _add(message, field, number, kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.ModelConfig"))


def _add(message: Any, field: str, number: int, kind: str) -> None:
    added = message.field.add(name=field, number=number, label=3 if kind.endswith("*") else 1)
    kind = kind.removesuffix("*")
    if kind in KINDS:
        added.type = KINDS[kind]
    else:
        added.type, added.type_name = (14 if kind in ENUMS else 11), f".{PACKAGE}.{kind}"
