#!/usr/bin/env python3
"""Opens sealed values of workflow-secrets, independently of its Rust code.

Written from the record format alone (src/envelope/record.rs, binding.rs,
derive.rs and seal.rs describe it); needs only the PyPI package `cryptography`.

    decode_record.py [FILE]

FILE (standard input by default) holds a JSON array of records, or one JSON
object per line. Each object has

    data_key     the unwrapped data key, 32 bytes in hexadecimal
    environment  ) the place the value was sealed for, as text
    workspace    )
    name         )
    uid          the secret's uid, 16 bytes in hexadecimal; dashes may stay
    revision     revision of the stored record, a number
    record       the bytes under v/NAME in the store, in hexadecimal

and may have more. For each, in order, one JSON object goes to standard output:
{"version": 1, "expire_time": {"seconds": 0, "nanos": 0} or null,
"value": "..."}, or {"error": "..."} if the record does not open. The exit
status is 1 if any did not, else 0.
"""

import hmac
import json
import struct
import sys
import uuid

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

HEADER = struct.Struct(">4sH16sQ32s12s32s")
PAYLOAD = struct.Struct(">QBqII")
LABEL = b"workflow-secrets/v1/hkdf-sha512-aes-256-gcm/"
MAX_VALUE = 65536


class Refused(Exception):
    """The record does not open."""


def padded(length):
    """The size that content of this length is padded to."""
    size = 64
    while size < length and size < 4096:
        size *= 2
    return size if length <= size else -(-length // 4096) * 4096


def expand(data_key, salt, label):
    return HKDF(SHA512(), 32, salt, LABEL + label).derive(data_key)


def open_record(case):
    """Opens one record; returns version, expiry and value."""
    record = bytes.fromhex(case["record"])
    if len(record) < HEADER.size + 16:
        raise Refused("too short")
    header, sealed = record[: HEADER.size], record[HEADER.size :]
    magic, suite, key_id, revision, salt, nonce, commitment = HEADER.unpack(header)
    if (magic, suite) != (b"WFS1", 1):
        raise Refused("unknown format or suite")
    if revision != case["revision"]:
        raise Refused("another revision")

    data_key = bytes.fromhex(case["data_key"])
    if not hmac.compare_digest(expand(data_key, salt, b"commitment"), commitment):
        raise Refused("another data key")
    parts = [
        b"workflow-secrets/v1/sealed-value",
        header,
        case["environment"].encode(),
        case["workspace"].encode(),
        uuid.UUID(case["uid"]).bytes,
        case["name"].encode(),
        b"secret-value",
        struct.pack(">Q", case["revision"]),
        key_id,
    ]
    associated = b"".join(struct.pack(">I", len(part)) + part for part in parts)
    try:
        payload = AESGCM(expand(data_key, salt, b"record-key")).decrypt(nonce, sealed, associated)
    except InvalidTag:
        raise Refused("fails authentication") from None

    version, flag, seconds, nanos, length = PAYLOAD.unpack_from(payload)
    end = PAYLOAD.size + length
    value, padding = payload[PAYLOAD.size : end], payload[end:]
    if flag > 1 or (flag == 0 and (seconds, nanos) != (0, 0)) or nanos >= 10**9:
        raise Refused("malformed expiry")
    if not 1 <= length <= MAX_VALUE or len(value) != length:
        raise Refused("malformed length")
    if len(payload) != padded(end) or any(padding):
        raise Refused("malformed padding")
    expire_time = {"seconds": seconds, "nanos": nanos} if flag else None
    return {"version": version, "expire_time": expire_time, "value": value.decode()}


def main():
    if len(sys.argv) > 1:
        with open(sys.argv[1], encoding="utf-8") as file:
            text = file.read()
    else:
        text = sys.stdin.read()
    if text.lstrip().startswith("["):
        cases = json.loads(text)
    else:
        cases = [json.loads(line) for line in text.splitlines() if line.strip()]
    failed = False
    for case in cases:
        try:
            result = open_record(case)
        except Refused as refused:
            result, failed = {"error": str(refused)}, True
        print(json.dumps(result))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
