#!/usr/bin/env python3
"""Reads metadata records of workflow-secrets, independently of its Rust code.

    read_metadata.py PROTO_DIR

Compiles workflowsecrets/storage/v1/storage.proto below PROTO_DIR with protoc
(PyPI package `grpcio-tools`). Standard input holds a record per line: the bytes
under m/NAME in the store, in hexadecimal, without the revision in front. For
each, a JSON object goes to standard output, with the fields as proto/ names
them; bytes are in hexadecimal, numbers are numbers, what is absent is null.
"""

import importlib
import json
import sys
import tempfile

from grpc_tools import protoc

PACKAGE = "workflowsecrets/storage/v1/storage"


def plain(message):
    """A message as JSON can hold it."""
    result = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type and field.is_repeated:
            value = [plain(part) for part in value]
        elif field.message_type:
            value = plain(value) if message.HasField(field.name) else None
        result[field.name] = value.hex() if isinstance(value, bytes) else value
    return result


def main():
    with tempfile.TemporaryDirectory() as directory:
        arguments = ["protoc", f"-I{sys.argv[1]}", f"--python_out={directory}"]
        if protoc.main([*arguments, f"{PACKAGE}.proto"]) != 0:
            sys.exit("protoc fails")
        sys.path.insert(0, directory)
        storage = importlib.import_module(f"{PACKAGE.replace('/', '.')}_pb2")
        for line in sys.stdin:
            record = storage.SecretMetadata.FromString(bytes.fromhex(line.strip()))
            print(json.dumps(plain(record)))


if __name__ == "__main__":
    main()
