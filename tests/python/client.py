"""A foreign client: grpcio, with stubs built from the proto files.

Usage: client.py PROTO_DIRECTORY CERTIFICATE_DIRECTORY ADDRESS

Run by tests/integration/foreign_client.rs. Prints the name of each part that
passed; an assertion that fails ends it.
"""

import base64
import json
import queue
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote, quote_plus

import grpc
from grpc_tools import protoc

# Where google_rpc.proto is.
ERRORS = Path(__file__).resolve().parents[2] / "examples/node"
WORKSPACE = "ws_python"
DETAILS = "grpc-status-details-bin"


def build_stubs(protos, target):
    """Compiles the API and the error model; makes them importable."""
    well_known = Path(protoc.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{protos}", f"-I{ERRORS}", f"-I{well_known}"]
    arguments += [f"--python_out={target}", f"--grpc_python_out={target}"]
    arguments += ["workflowsecrets/v1/secrets.proto", "google_rpc.proto"]
    assert protoc.main(arguments) == 0
    sys.path.insert(0, str(target))


class Client:
    """One caller: its channel and its stub."""

    def __init__(self, certificates, address, caller, options=()):
        read = lambda name: (certificates / name).read_bytes()
        credentials = grpc.ssl_channel_credentials(
            read("ca.crt"), read(f"{caller}.key"), read(f"{caller}.crt")
        )
        channel = grpc.secure_channel(address, credentials, options=options)
        self.stub = secrets_grpc.SecretsServiceStub(channel)

    def __getattr__(self, method):
        call = getattr(self.stub, method)
        return lambda request, **options: call(request, timeout=60, **options)

    def refused(self, method, request):
        """Calls, and returns the error."""
        try:
            getattr(self, method)(request)
        except grpc.RpcError as error:
            return Refusal(error)
        raise AssertionError(f"{method} was not refused")


class Refusal:
    """An error with its details, by type name."""

    def __init__(self, error):
        self.code, self.message = error.code(), error.details()
        self.trailer = error.trailing_metadata()
        status = google_rpc.Status.FromString(dict(self.trailer)[DETAILS])
        assert (status.code, status.message) == (self.code.value[0], self.message)
        self.details = {}
        for detail in status.details:
            kind = detail.TypeName().removeprefix("google.rpc.")
            message = getattr(google_rpc, kind)()
            assert detail.Unpack(message)
            self.details[kind] = message
        assert self.details["ErrorInfo"].domain == "workflowsecrets.v1"
        self.reason = self.details["ErrorInfo"].reason

    def size(self):
        """As HTTP/2 counts (RFC 9113, section 6.5.2), binary values in base64."""
        headers = {
            name: (len(value) * 4 + 2) // 3 if name.endswith("-bin") else len(value)
            for name, value in self.trailer
        }
        headers |= {":status": 3, "content-type": len("application/grpc"), "grpc-status": 1}
        headers["grpc-message"] = len(quote(self.message))
        return sum(len(name) + length + 32 for name, length in headers.items())


def key(name):
    return {"workspace": WORKSPACE, "name": name}


def resolve(*credentials):
    return api.ResolveSecretsRequest(
        workspace=WORKSPACE,
        credentials=[api.Credential(secret=name, alias=alias) for name, alias in credentials],
        run_id="run-1",
    )


def tour(connect):
    platform, executor = connect("platform"), connect("executor")
    request = api.CreateSecretRequest(**key("KEY"), value="value-1", description="Données")
    created = platform.CreateSecret(request, metadata=[("x-actor-bin", "Zoë".encode())])
    assert created.version == 1 and created.managed_by == api.MANAGED_BY_USER
    assert created.description == "Données" and created.created_by == "Zoë"
    assert not created.HasField("expire_time") and not created.HasField("owner")
    assert platform.GetSecret(api.GetSecretRequest(**key("KEY"))) == created
    listed = platform.ListSecrets(api.ListSecretsRequest(workspace=WORKSPACE))
    assert list(listed.secrets) == [created] and not listed.next_page_token

    request = api.UpdateSecretRequest(**key("KEY"), value="value-2", etag=created.etag)
    updated = platform.UpdateSecret(request)
    assert (updated.version, updated.uid) == (2, created.uid)
    assert updated.description == "Données" and updated.updated_by == "spiffe://test/platform"
    secrets = executor.ResolveSecrets(resolve(("KEY", "k"), ("KEY", ""))).secrets
    assert set(secrets) == {"k", "KEY"} and secrets["k"] == secrets["KEY"]
    resolved = api.ResolvedSecret(name="KEY", value="value-2", version=2, uid=created.uid)
    assert secrets["k"] == resolved

    sheets = connect("sheets")
    owner = api.Owner(integration="google_sheets", connection_id="conn-1")
    request = api.CreateSecretRequest(**key("TOKEN"), value="token", owner=owner)
    assert sheets.CreateSecret(request).managed_by == api.MANAGED_BY_SYSTEM
    platform.DeleteSecret(api.DeleteSecretRequest(**key("KEY"), etag=updated.etag))


def errors(connect):
    """Each kind of detail, as another implementation reads it."""
    platform, executor = connect("platform"), connect("executor")
    refusal = platform.refused("ResolveSecrets", resolve(("TOKEN", "")))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.PERMISSION_DENIED, "NOT_GRANTED")
    refusal = executor.refused("CreateSecret", api.CreateSecretRequest(**key("K"), value="x"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.PERMISSION_DENIED, "NOT_GRANTED")

    refusal = platform.refused("UpdateSecret", api.UpdateSecretRequest(**key("TOKEN"), value="x"))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.PERMISSION_DENIED, "SYSTEM_MANAGED")
    owner = {"integration": "google_sheets", "connection_id": "conn-1"}
    assert dict(refusal.details["ErrorInfo"].metadata) == owner

    refusal = platform.refused("GetSecret", api.GetSecretRequest(**key("KEY")))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "SECRET_NOT_FOUND")
    resource = refusal.details["ResourceInfo"]
    assert (resource.resource_type, resource.resource_name) == ("secret", "KEY")

    bad = api.CreateSecretRequest(workspace="no workspace", name="no-name", value="")
    refusal = platform.refused("CreateSecret", bad)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    fields = [violation.field for violation in refusal.details["BadRequest"].field_violations]
    assert fields == ["value", "workspace", "name"]
    assert "no workspace" not in refusal.message and "no-name" not in refusal.message

    large = api.CreateSecretRequest(**key("K"), value="x" * 1_000_000)
    refusal = platform.refused("CreateSecret", large)
    expected = (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")
    assert (refusal.code, refusal.reason) == expected


def many_unresolved(connect):
    """gRPC core may drop trailers above 8 KiB, and drops them above 16 KiB."""
    executor = connect("executor")
    # Up to the longest names; up to 36 characters, all are listed.
    for length in (*range(11, 129, 9), 36, 127, 128):
        names = [f"MISSING_{number:02}_".ljust(length, "x") for number in range(100)]
        refusal = executor.refused("ResolveSecrets", resolve(*((name, "") for name in names)))
        expected = (grpc.StatusCode.FAILED_PRECONDITION, "SECRETS_UNRESOLVED")
        assert (refusal.code, refusal.reason) == expected
        violations = refusal.details["PreconditionFailure"].violations
        assert {violation.type for violation in violations} == {"MISSING"}
        told = [violation.subject for violation in violations]
        unlisted = int(refusal.details["ErrorInfo"].metadata.get("unlisted", 0))
        assert told == names[: 100 - unlisted]
        assert unlisted == 0 or length > 36, f"{unlisted} of length {length} not listed"
        size = refusal.size()
        assert size <= 8 * 1024, f"{size} bytes for names of {length}"


def values(connect):
    """Exactly what was stored comes back, whatever it is made of."""
    platform, executor = connect("platform"), connect("executor")
    odd = "\0\x01\x7f\u0085\u2028\u2029\ufeff\ufffe\U0001f511\U0010ffff \t\r\n\"'\\/<>&%e\u0301é"
    filler = "k" * (64 * 1024 - len(odd.encode()) - 1)
    full = odd + filler + "\n"
    assert len(full.encode()) == 64 * 1024
    texts = ["\0", " ", "\n", "\ufeff", odd, "trailing\n", "  both  ", '{"a": "${b}"}', full]
    for number, text in enumerate(texts):
        platform.CreateSecret(api.CreateSecretRequest(**key(f"V{number}"), value=text))
    names = [(f"V{number}", "") for number in range(len(texts))]
    secrets = executor.ResolveSecrets(resolve(*names)).secrets
    for number, text in enumerate(texts):
        assert secrets[f"V{number}"].value == text, f"value {number} came back changed"
    platform.UpdateSecret(api.UpdateSecretRequest(**key("V0"), value=full[::-1]))
    assert executor.ResolveSecrets(resolve(("V0", "v"))).secrets["v"].value == full[::-1]


def largest_answer(connect):
    """100 values of 64 KiB; gRPC takes 4 MiB unless the client raises it."""
    platform, executor = connect("platform"), connect("executor")
    for number in range(100):
        text = f"{number:04}" * (16 * 1024)
        platform.CreateSecret(api.CreateSecretRequest(**key(f"L{number}"), value=text))
    request = resolve(*((f"L{number}", f"l{number}") for number in range(100)))
    try:
        executor.ResolveSecrets(request)
        raise AssertionError("an answer above the client's limit was taken")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    raised = [("grpc.max_receive_message_length", 8 * 1024 * 1024)]
    secrets = connect("executor", raised).ResolveSecrets(request).secrets
    assert len(secrets) == 100
    for number in range(100):
        assert secrets[f"l{number}"].value == f"{number:04}" * (16 * 1024)


def documents(connect):
    """Render and Check: what comes out, and where something is wrong."""
    platform, executor = connect("platform"), connect("executor")
    odd = 'a "b" \\ \0\x1f\x7f\u0085\u2028\u2029\ufeff\U0001f511 {{secrets.PLAIN}} }} \r\n/é'
    for name, value in (("PLAIN", "plain-value-1"), ("ODD", odd)):
        platform.CreateSecret(api.CreateSecretRequest(**key(name), value=value))
    template = {
        "{{secrets.PLAIN}}": ["{{ secrets.ODD }}", "{{ $json.id }}", 1.5, None, "é\u2028"],
        "\\{{secrets.PLAIN}}": "\U0001f511{{secrets.ODD}}{{secrets.PLAIN}}",
    }
    expected = {
        "plain-value-1": [odd, "{{ $json.id }}", 1.5, None, "é\u2028"],
        "{{secrets.PLAIN}}": f"\U0001f511{odd}plain-value-1",
    }
    for ascii_only in (True, False):
        request = api.RenderTemplateRequest(
            workspace=WORKSPACE,
            json=json.dumps(template, indent=1, ensure_ascii=ascii_only),
            credentials=[api.Credential(secret="ODD", alias="o"), api.Credential(secret="PLAIN")],
            run_id="run-1",
        )
        answer = executor.RenderTemplate(request)
        assert json.loads(answer.rendered) == expected
        assert dict(answer.context_secrets) == {"o": odd, "PLAIN": "plain-value-1"}
        assert [(used.name, used.version) for used in answer.used] == [("ODD", 1), ("PLAIN", 1)]
    text = api.RenderTemplateRequest(workspace=WORKSPACE, text="<{{secrets.ODD}}>\r\n")
    assert executor.RenderTemplate(text).rendered == f"<{odd}>\r\n"

    wrong = json.dumps({"a/b~é": ["{{secrets.PLAIN}}", "{{secrets.GONE}} {{secrets.A-B}}"]})
    wrong = {"workspace": WORKSPACE, "json": wrong, "credentials": [api.Credential(secret="LOST")]}
    refusal = executor.refused("RenderTemplate", api.RenderTemplateRequest(**wrong))
    expected = (grpc.StatusCode.FAILED_PRECONDITION, "SECRETS_UNRESOLVED")
    assert (refusal.code, refusal.reason) == expected
    violations = refusal.details["PreconditionFailure"].violations
    assert [(one.type, one.subject, one.description) for one in violations] == [
        ("MISSING", "GONE", "/a~1b~0é/1"),
        ("MALFORMED", "", "/a~1b~0é/1"),
        ("MISSING", "LOST", "credentials[0]"),
    ]
    assert "plain-value-1" not in refusal.message
    answer = platform.CheckReferences(api.CheckReferencesRequest(**wrong))
    assert [(one.place, one.name, one.state) for one in answer.references] == [
        ("/a~1b~0é/0", "PLAIN", api.REFERENCE_STATE_OK),
        ("/a~1b~0é/1", "GONE", api.REFERENCE_STATE_MISSING),
        ("/a~1b~0é/1", "", api.REFERENCE_STATE_MALFORMED),
        ("credentials[0]", "LOST", api.REFERENCE_STATE_MISSING),
    ]
    assert not answer.resolvable and answer.references[0].managed_by == api.MANAGED_BY_USER

    bad = api.RenderTemplateRequest(workspace=WORKSPACE, json='{"a":\n nul}')
    refusal = executor.refused("RenderTemplate", bad)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    told = refusal.details["BadRequest"].field_violations[0]
    assert (told.field, told.description[:32]) == ("json", "is not valid JSON at line 2, col")
    large = api.CheckReferencesRequest(workspace=WORKSPACE, text="x" * (1024 * 1024 + 1))
    refusal = executor.refused("CheckReferences", large)
    expected = (grpc.StatusCode.RESOURCE_EXHAUSTED, "TEMPLATE_TOO_LARGE")
    assert (refusal.code, refusal.reason) == expected


def many_places(connect):
    """As many_unresolved, with the longest places too."""
    executor = connect("executor")
    for name, letter in (("GONE", "k"), ("GONE", "é"), ("G" * 128, "\U0001f511"), ("GONE", "\n")):
        for length in (1, 14, 29, 57, 58, 300, 800):
            document = {f"{i}{letter * length}": "{{secrets.%s}}" % name for i in range(100)}
            request = api.RenderTemplateRequest(workspace=WORKSPACE, json=json.dumps(document))
            refusal = executor.refused("RenderTemplate", request)
            assert refusal.reason == "SECRETS_UNRESOLVED"
            told = refusal.details["PreconditionFailure"].violations
            unlisted = int(refusal.details["ErrorInfo"].metadata.get("unlisted", 0))
            assert len(told) + unlisted == 100 and told[0].description.startswith("/0")
            size = refusal.size()
            assert size <= 8 * 1024, f"{size} bytes for keys of {length} {letter!r}"


def encodings(value):
    """A value as Python writes it."""
    raw = value.encode()
    yield value
    for before in (b"", b"x", b"xy"):
        data = before + raw
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            text = encode(data).decode()
            # Without what `before` has a part in.
            yield text[-(-len(before) * 8 // 6) :]
    yield base64.b64encode(raw).decode().rstrip("=")
    yield raw.hex()
    yield raw.hex().upper()
    yield quote(value)
    yield quote(value, safe="")
    yield quote_plus(value)
    yield json.dumps(value)[1:-1]
    yield json.dumps(value, ensure_ascii=False)[1:-1]


def prepare(connect):
    platform = connect("platform")
    value = 'pä"ss/wörd & more?~\U0001f511'
    request = api.CreateSecretRequest(**key("PASTED"), value=value, description=f"Was {value}")
    platform.CreateSecret(request)
    texts = list(encodings(value))
    basic = base64.b64encode(f"me:{value}".encode()).decode()
    workflow = {"texts": texts, value: 1, "auth": f"Basic {basic}", "keep": "{{secrets.GONE}}"}
    request = api.PrepareTemplateRequest(workspace=WORKSPACE, json=json.dumps(workflow))
    answer = platform.PrepareTemplate(request)
    for text in (*texts, basic):
        assert text not in str(json.loads(answer.json)), f"{text} is left"
    sanitized = json.loads(answer.json)
    assert sanitized["texts"][0] == "{{secrets.PASTED}}" and sanitized["{{secrets.PASTED}}"] == 1
    assert sanitized["auth"] == "Basic <<basic of secrets.PASTED>>"
    assert sanitized["keep"] == "{{secrets.GONE}}"
    assert len(answer.pasted) == len(texts) + 2
    assert answer.pasted[0] == api.PastedValue(
        place="/texts/0", name="PASTED", encoding=api.VALUE_ENCODING_RAW
    )
    manifest = {one.name: one for one in answer.manifest}
    assert manifest["PASTED"].description == "Was {{secrets.PASTED}}"
    assert manifest["GONE"].managed_by == api.MANAGED_BY_UNSPECIFIED

    request.strict = True
    refusal = platform.refused("PrepareTemplate", request)
    expected = (grpc.StatusCode.FAILED_PRECONDITION, "VALUES_PASTED")
    assert (refusal.code, refusal.reason) == expected
    violations = refusal.details["PreconditionFailure"].violations
    assert len(violations) == len(texts) + 2 and value not in str(violations)
    assert (violations[0].type, violations[0].subject) == ("RAW", "PASTED")


def redact(connect):
    """A stream each way at once."""
    executor = connect("executor")
    value = executor.ResolveSecrets(resolve(("PASTED", ""))).secrets["PASTED"].value
    log = "\n".join(f"<{text}>" for text in encodings(value)).encode() + b"\xff\x00 end"

    def stream(chunks, **options):
        yield api.RedactRequest(open=api.RedactOpen(workspace=WORKSPACE, **options))
        for chunk in chunks:
            yield api.RedactRequest(chunk=chunk)

    whole = None
    for size in (1, 7, 64, len(log)):
        chunks = [log[at : at + size] for at in range(0, len(log), size)]
        answers = list(executor.Redact(stream(chunks, names=["PASTED"], run_id="run-1")))
        text = b"".join(answer.chunk for answer in answers)
        assert all(not answer.HasField("tally") for answer in answers[:-1])
        last = answers[-1]
        assert last.input_bytes == len(log) and not last.chunk
        whole = whole or (text, last.tally)
        assert whole == (text, last.tally), f"chunks of {size} make a difference"
    text, tally = whole
    assert text.startswith(b"<{{secrets.PASTED}}>\n") and text.endswith(b"\xff\x00 end")
    for form in encodings(value):
        assert form.encode() not in text, f"{form} is left"
    assert {masked.name for masked in tally.masked} == {"PASTED"}
    assert sum(masked.count for masked in tally.masked) == len(list(encodings(value)))

    # An answer comes while the stream is open.
    requests = queue.SimpleQueue()
    answers = executor.Redact(iter(requests.get, None))
    requests.put(*stream([], all_names=True))
    for line in (b"one\n", b"two\n"):
        requests.put(api.RedactRequest(chunk=line))
        assert next(answers).chunk == line
    requests.put(None)
    assert next(answers).HasField("tally")

    for requests, code, why in (
        (stream([], names=["GONE"]), grpc.StatusCode.FAILED_PRECONDITION, "SECRETS_UNRESOLVED"),
        (stream([]), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        (stream([b"x" * 300_000], all_names=True), grpc.StatusCode.RESOURCE_EXHAUSTED,
         "MESSAGE_TOO_LARGE"),
    ):
        try:
            list(executor.Redact(requests))
            raise AssertionError(f"{why} was not told")
        except grpc.RpcError as error:
            refusal = Refusal(error)
        assert (refusal.code, refusal.reason) == (code, why)


def main(protos, certificates, address):
    global api, secrets_grpc, google_rpc
    with tempfile.TemporaryDirectory() as target:
        build_stubs(Path(protos), target)
        import google_rpc_pb2 as google_rpc
        from workflowsecrets.v1 import secrets_pb2 as api
        from workflowsecrets.v1 import secrets_pb2_grpc as secrets_grpc

    def connect(caller, options=()):
        return Client(Path(certificates), address, caller, options)

    parts = (tour, errors, many_unresolved, documents, many_places, prepare, redact, values)
    for part in (*parts, largest_answer):
        part(connect)
        print(part.__name__.replace("_", " "), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
