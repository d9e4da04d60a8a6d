"""Stands in for Terraform's AWS provider, of which it knows the schema and nothing else.

Terraform starts it as it would the real one (protocol 6), and with that schema checks each
argument, type, block and reference. It makes nothing and asks nobody. aws_schema.json is what
the real one says of the types that deploy/terraform uses.
"""

import base64
import datetime
import json
import os
import sys
import tempfile
from concurrent import futures
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

SCHEMA = Path(__file__).resolve().parent / "aws_schema.json"
# What is used of the protocol, with its numbers.
PROTOCOL = """
syntax = "proto3";
package tfplugin6;
message Nothing {}
message Attribute {
  string name = 1; bytes type = 2; bool required = 4; bool optional = 5; bool computed = 6;
  bool sensitive = 7; bool write_only = 11;
}
message Block { int64 version = 1; repeated Attribute attributes = 2; repeated Nested block_types = 3; }
message Nested {
  enum Mode { INVALID = 0; SINGLE = 1; LIST = 2; SET = 3; MAP = 4; GROUP = 5; }
  string type_name = 1; Block block = 2; Mode nesting = 3; int64 min_items = 4; int64 max_items = 5;
}
message Schema { int64 version = 1; Block block = 2; }
message Schemas {
  Schema provider = 1; map<string, Schema> resource_schemas = 2; map<string, Schema> data_source_schemas = 3;
}
"""
# Answers that say "fine" are empty, whatever their type.
FINE = ("ValidateProviderConfig", "ValidateResourceConfig", "ValidateDataResourceConfig", "ConfigureProvider", "StopProvider")


def messages():
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "tfplugin6_part.proto").write_text(PROTOCOL)
        assert protoc.main(["", f"-I{directory}", f"--python_out={directory}", "tfplugin6_part.proto"]) == 0
        sys.path.insert(0, directory)
        import tfplugin6_part_pb2

    return tfplugin6_part_pb2


def block(made, entries):
    attributes, nested = [], []
    for name, entry in entries.items():
        if "block" in entry:
            modes = {"list": made.Nested.LIST, "set": made.Nested.SET, "struct": made.Nested.SINGLE}
            nested.append(made.Nested(
                type_name=name, block=block(made, entry["block"]), nesting=modes[entry["nesting"]],
                min_items=int(entry["required"]),
            ))
        else:
            attributes.append(made.Attribute(
                name=name, type=json.dumps(entry["type"]).encode(), required=entry["required"],
                optional=entry["optional"], computed=entry["computed"], write_only=name.endswith("_wo"),
                sensitive="password" in name and entry["type"] != "number",
            ))
    return made.Block(attributes=attributes, block_types=nested)


def schemas(made):
    known = json.loads(SCHEMA.read_text())
    region = made.Attribute(name="region", type=b'"string"', optional=True)
    return made.Schemas(
        provider=made.Schema(block=made.Block(attributes=[region])),
        resource_schemas={n: made.Schema(block=block(made, e)) for n, e in known["resource"].items()},
        data_source_schemas={n: made.Schema(block=block(made, e)) for n, e in known["data"].items()},
    )


def certificate():
    """A key and certificate of this process, as Terraform demands."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pem, made


def main():
    made = messages()
    answer = schemas(made).SerializeToString()
    handlers = {name: lambda *_: b"" for name in FINE} | {"GetProviderSchema": lambda *_: answer}
    server = grpc.server(futures.ThreadPoolExecutor(4))
    for service, methods in {
        "tfplugin6.Provider": handlers, "plugin.GRPCController": {"Shutdown": lambda *_: os._exit(0)},
    }.items():
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(
            service, {name: grpc.unary_unary_rpc_method_handler(call) for name, call in methods.items()}
        )])
    key, own = certificate()
    pem = own.public_bytes(serialization.Encoding.PEM)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, pem)]))
    server.start()
    der = base64.b64encode(own.public_bytes(serialization.Encoding.DER)).decode().rstrip("=")
    print(f"1|6|tcp|127.0.0.1:{port}|grpc|{der}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
