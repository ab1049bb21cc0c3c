"""Makes golden.jsonl: records as Confluent's own serialisers write them, and the same records in JSON.

    pip install confluent-kafka==2.16.1 fastavro protobuf grpcio-tools httpx authlib cachetools attrs googleapis-common-protos
    python make_golden.py > golden.jsonl

A line is a record: its format, what a registry answers for the schema that it names, its bytes, and the JSON record that must become
the same document. `references` are (name, subject, version, schema, references).
"""

import base64
import datetime
import decimal
import io
import json
import math
import pathlib
import sys
import tempfile

import fastavro
from confluent_kafka.schema_registry import Schema, SchemaReference, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from grpc_tools import protoc

registry = SchemaRegistryClient.new_client({"url": "mock://golden"})
CONTEXT = SerializationContext("golden", MessageField.VALUE)


def references_of(schema):
    """All that a schema refers to, as the registry has it."""
    found = []
    for reference in schema.references or []:
        version = registry.get_version(reference.subject, reference.version).schema
        found.append([reference.name, reference.subject, reference.version, version.schema_str, references_of(version)])
    return found


def emit(name, form, payload, record, defines=None):
    schema_id = int.from_bytes(payload[1:5], "big")
    assert payload[0] == 0
    schema = defines or registry.get_schema(schema_id)
    line = {
        "name": name,
        "format": form,
        "id": schema_id,
        "schema": schema.schema_str,
        "schema_type": schema.schema_type,
        "references": references_of(schema),
        "payload": payload.hex(),
        "record": record,
    }
    print(json.dumps(line, ensure_ascii=False))


# ---- Avro

TEXT = "Grüße — the quick brown fox \"jumps\" over\nthe lazy dog \U0001f98a"

FLAT = {
    "type": "record",
    "name": "Document",
    "namespace": "org.example",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "text", "type": "string"},
        {"name": "source", "type": ["null", "string"], "default": None},
        {"name": "n", "type": "long"},
    ],
}

EVOLVED = {
    **FLAT,
    "fields": FLAT["fields"]
    + [
        {"name": "lang", "type": ["string", "null"], "default": "en"},
        {"name": "timestamp", "type": {"type": "long", "logicalType": "timestamp-micros"}, "default": 0},
        {"name": "loss", "type": ["null", "double"], "default": None},
    ],
}

EVERYTHING = {
    "type": "record",
    "name": "org.example.Everything",
    "fields": [
        {"name": "nothing", "type": "null"},
        {"name": "yes", "type": "boolean"},
        {"name": "least", "type": "int"},
        {"name": "long", "type": {"type": "long"}},
        {"name": "single", "type": "float"},
        {"name": "double", "type": "double"},
        {"name": "endless", "type": "double"},
        {"name": "text", "type": "string"},
        {"name": "bytes", "type": "bytes"},
        {"name": "hash", "type": {"type": "fixed", "name": "Hash", "size": 4}},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
        {"name": "debt", "type": {"type": "fixed", "name": "Debt", "size": 8, "logicalType": "decimal", "precision": 9, "scale": 3}},
        {"name": "source", "type": {"type": "enum", "name": "Source", "symbols": ["WEB", "BOOKS"]}},
        {"name": "numbers", "type": {"type": "array", "items": "int"}},
        {"name": "scores", "type": {"type": "map", "values": ["null", "double"]}},
        {
            "name": "page",
            "type": {
                "type": "record",
                "name": "Page",
                "fields": [
                    {"name": "url", "type": "string"},
                    {"name": "hash", "type": "Hash"},
                    {"name": "links", "type": {"type": "array", "items": "Page"}},
                ],
            },
        },
        {"name": "other", "type": ["null", "org.example.Page", "string", "long"]},
        {"name": "id", "type": ["null", "long"]},
    ],
}


def avro(name, schema, datum, record, conf=None):
    serializer = AvroSerializer(registry, schema if isinstance(schema, Schema) else json.dumps(schema), conf=conf or {})
    emit(name, "avro", serializer(datum, SerializationContext(f"avro-{name}", MessageField.VALUE)), record)


flat = {"id": "d1", "text": TEXT, "source": "web", "n": 17}
avro("flat", FLAT, flat, flat)
avro("flat without a source", FLAT, {**flat, "source": None}, {**flat, "source": None})
evolved = {**flat, "lang": None, "timestamp": datetime.datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=datetime.timezone.utc), "loss": 2.5}
avro("evolved", EVOLVED, evolved, {**evolved, "timestamp": 1769860800123})
page = {"url": "https://a.example/", "hash": b"\x00\x01\xfe\xff", "links": []}
page = {**page, "links": [{**page, "url": "b"}, {**page, "url": "c", "links": [page]}]}


def shown(page):
    return {"url": page["url"], "hash": base64.b64encode(page["hash"]).decode(), "links": [shown(link) for link in page["links"]]}


everything = {
    "nothing": None,
    "yes": True,
    "least": -(2**31),
    "long": 2**63 - 1,
    "single": 0.5,
    "double": -1.25e-7,
    "endless": -math.inf,
    "text": TEXT * 50,
    "bytes": bytes(range(256)),
    "hash": b"\xde\xad\xbe\xef",
    "price": decimal.Decimal("1234567.05"),
    "debt": decimal.Decimal("-0.042"),
    "source": "BOOKS",
    "numbers": [1, -1, 2**31 - 1],
    "scores": {"a": 1.5, "ü": None},
    "page": page,
    "other": page,
    "id": -42,
}
avro(
    "everything",
    EVERYTHING,
    everything,
    {
        **everything,
        "endless": "-Infinity",
        "bytes": base64.b64encode(bytes(range(256))).decode(),
        "hash": "3q2+7w==",
        "price": "1234567.05",
        "debt": "-0.042",
        "page": shown(page),
        "other": shown(page),
    },
)

HASH = Schema(json.dumps({"type": "fixed", "name": "org.example.Hash", "size": 4}), "AVRO")
PAGE = {
    "type": "record",
    "name": "org.example.Page",
    "fields": [{"name": "url", "type": "string"}, {"name": "hash", "type": "org.example.Hash"}],
}
registry.register_schema("hash", HASH)
registry.register_schema("page", Schema(json.dumps(PAGE), "AVRO", [SchemaReference("org.example.Hash", "hash", 1)]))
with_reference = {
    "type": "record",
    "name": "org.example.Linked",
    "fields": [
        {"name": "text", "type": "string"},
        {"name": "page", "type": "org.example.Page"},
        {"name": "own", "type": "org.example.Hash"},
    ],
}
linked = Schema(
    json.dumps(with_reference),
    "AVRO",
    [SchemaReference("org.example.Page", "page", 1), SchemaReference("org.example.Hash", "hash", 1)],
)
plain = {"url": "u", "hash": b"abcd"}
avro(
    "references",
    linked,
    {"text": TEXT, "page": plain, "own": b"\x00\x00\x00\x00"},
    {"text": TEXT, "page": {"url": "u", "hash": "YWJjZA=="}, "own": "AAAAAA=="},
)

# Blocks with their lengths before them, as Java writes large arrays: by hand, fastavro writes none.
sized = {"type": "record", "name": "Sized", "fields": [{"name": "text", "type": "string"}, {"name": "ns", "type": {"type": "array", "items": "int"}}]}
buffer = io.BytesIO()
fastavro.schemaless_writer(buffer, fastavro.parse_schema({"type": "record", "name": "T", "fields": sized["fields"][:1]}), {"text": TEXT})
buffer.write(bytes([3, 4, 2, 4, 1, 2, 6, 0]))  # -2 items, 2 bytes: 1, 2; then 1 item: 3; then none
schema = Schema(json.dumps(sized), "AVRO")
schema_id = registry.register_schema("sized", schema)
emit("blocks with lengths", "avro", b"\0" + schema_id.to_bytes(4, "big") + buffer.getvalue(), {"text": TEXT, "ns": [1, 2, 3]})

# One of several records.
union = Schema(json.dumps([FLAT, sized]), "AVRO")
schema_id = registry.register_schema("union", union)
buffer = io.BytesIO()
fastavro.schemaless_writer(buffer, fastavro.parse_schema(json.loads(union.schema_str)), ("Sized", {"text": TEXT, "ns": []}))
emit("a union of records", "avro", b"\0" + schema_id.to_bytes(4, "big") + buffer.getvalue(), {"text": TEXT, "ns": []})

# ---- Protobuf

FILES = {
    "flat.proto": """syntax = "proto3";
package example;
message Document {
  string id = 1;
  string text = 2;
  string source = 3;
  int64 n = 4;
}
""",
    "common/page.proto": """syntax = "proto3";
package example.common;
message Page {
  string url = 1;
  repeated Page links = 2;
}
enum Kind {
  UNKNOWN = 0;
  BOOK = 1;
}
""",
    "everything.proto": """syntax = "proto3";
package example;
import "common/page.proto";
import "google/protobuf/timestamp.proto";
import "google/protobuf/duration.proto";
import "google/protobuf/wrappers.proto";
import "google/protobuf/struct.proto";
message Other {
  string text = 1;
}
message Outer {
  message First {
    string text = 1;
  }
  message Everything {
    enum Source {
      WEB = 0;
      BOOKS = 1;
    }
    string text = 16;
    Source source = 15;
    optional uint64 id = 1;
    google.protobuf.Timestamp timestamp = 2;
    google.protobuf.DoubleValue loss = 3;
    bool yes = 4;
    sint32 least = 5;
    fixed64 most = 6;
    float single = 7;
    double endless = 8;
    bytes bytes = 9;
    repeated int32 numbers = 10;
    map<string, double> scores = 11;
    map<int32, common.Page> pages = 12;
    common.Page page = 13;
    repeated common.Kind kinds = 14;
    google.protobuf.Timestamp seen = 17;
    google.protobuf.Duration took = 18;
    google.protobuf.StringValue note = 19;
    google.protobuf.Struct more = 20;
    oneof one {
      string word = 21;
      int64 number = 22;
    }
    optional string never = 23;
    int32 zero = 24;
    string jsonName = 25;
    common.Page no_page = 26;
    repeated string no_words = 27;
  }
}
""",
    "old.proto": """syntax = "proto2";
message Old {
  required string text = 1;
  optional string id = 2;
  optional int32 n = 3 [default = 7];
  optional group Extra = 4 {
    optional string note = 1;
  }
}
""",
}

folder = tempfile.mkdtemp()
for file, text in FILES.items():
    path = pathlib.Path(folder, file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
import grpc_tools

include = str(pathlib.Path(grpc_tools.__file__).parent / "_proto")
code = protoc.main(["protoc", f"-I{folder}", f"-I{include}", f"--python_out={folder}", *FILES])
assert code == 0
sys.path.insert(0, folder)
import everything_pb2
import flat_pb2
import old_pb2
from google.protobuf import struct_pb2


def protobuf(name, message, file, record):
    """The schema's text is that of the file, as other clients register it: this one registers descriptors in base64."""
    serializer = ProtobufSerializer(type(message), registry, {"use.deprecated.format": False})
    payload = serializer(message, SerializationContext(f"protobuf-{name}", MessageField.VALUE))
    references = []
    for imported in [imported for imported in FILES if imported in FILES[file]]:
        registry.register_schema(f"text-{imported}", Schema(FILES[imported], "PROTOBUF"))
        references.append(SchemaReference(imported, f"text-{imported}", 1))
    emit(name, "protobuf", payload, record, Schema(FILES[file], "PROTOBUF", references))
    # And as this client registers it.
    emit(f"{name}, descriptors", "protobuf", payload, record)


message = flat_pb2.Document(id="d1", text=TEXT, source="web", n=17)
protobuf("flat", message, "flat.proto", {"id": "d1", "text": TEXT, "source": "web", "n": 17})
protobuf("empty", flat_pb2.Document(), "flat.proto", {"text": "", "n": 0})
E_ = everything_pb2.Outer.Everything
message = E_(
    text=TEXT,
    source="BOOKS",
    id=2**64 - 1,
    yes=True,
    least=-(2**31),
    most=2**64 - 1,
    single=0.5,
    endless=math.nan,
    bytes=b"\x00\xff",
    numbers=[1, 0, -1],
    scores={key: float(n) for n, key in enumerate("zyxwvutsrqponmlkjihgfedcba")},
    kinds=[1, 0, 9],
    word="w",
    jsonName="j",
)
message.timestamp.FromMilliseconds(1769860800123)
message.loss.value = 2.5
message.page.url = "a"
message.page.links.add(url="b")
message.pages[7].url = "seven"
message.pages[-1].SetInParent()
message.seen.FromJsonString("2026-01-31T12:00:00.5Z")
message.took.FromJsonString("-1.25s")
message.note.value = ""
message.more.update({"b": [1, None, "x"], "a": {"c": True}})
protobuf(
    "everything",
    message,
    "everything.proto",
    {
        "text": TEXT,
        "source": "BOOKS",
        "id": 2**64 - 1,
        "timestamp": 1769860800123,
        "loss": 2.5,
        "yes": True,
        "least": -(2**31),
        "most": 2**64 - 1,
        "single": 0.5,
        "endless": "NaN",
        "bytes": "AP8=",
        "numbers": [1, 0, -1],
        "scores": {key: float(n) for n, key in enumerate("zyxwvutsrqponmlkjihgfedcba")},
        "pages": {"-1": {"url": ""}, "7": {"url": "seven"}},
        "page": {"url": "a", "links": [{"url": "b"}]},
        "kinds": ["BOOK", "UNKNOWN", 9],
        "seen": "2026-01-31T12:00:00.500Z",
        "took": "-1.25s",
        "note": "",
        "more": {"a": {"c": True}, "b": [1.0, None, "x"]},
        "word": "w",
        "zero": 0,
        "jsonName": "j",
    },
)
old = old_pb2.Old(text=TEXT, id="o")
old.extra.note = "n"
protobuf("proto2", old, "old.proto", {"text": TEXT, "id": "o", "extra": {"note": "n"}})
