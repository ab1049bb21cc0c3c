"""Sends documents to a topic by Confluent's own serialisers, which register their schemas.

    python produce.py BOOTSTRAP TOPIC REGISTRY_URL avro|protobuf < documents.jsonl

Each line of the input is an object with id, text, source and n. Every third record is of a second version of the schema. The protobuf
message is made at run time, so that no compiler of Protobuf is needed.
"""

import json
import sys

from confluent_kafka import Producer
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.serialization import MessageField, SerializationContext

bootstrap, topic, url, form = sys.argv[1:]
registry = SchemaRegistryClient({"url": url})


def avro():
    from confluent_kafka.schema_registry.avro import AvroSerializer

    fields = [
        {"name": "id", "type": "string"},
        {"name": "text", "type": "string"},
        {"name": "source", "type": ["null", "string"], "default": None},
        {"name": "n", "type": "long"},
    ]
    versions = [fields, fields + [{"name": "lang", "type": ["null", "string"], "default": None}]]
    schemas = [{"type": "record", "name": "Document", "namespace": "example", "fields": fields} for fields in versions]
    return [AvroSerializer(registry, json.dumps(schema)) for schema in schemas]


def protobuf():
    from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    serializers = []
    for version, names in enumerate([["id", "text", "source", "n"], ["id", "text", "source", "n", "lang"]]):
        file = descriptor_pb2.FileDescriptorProto(name=f"document{version}.proto", package=f"example{version}", syntax="proto3")
        file.message_type.add(name="Other")
        message = file.message_type.add(name="Document")
        for number, name in enumerate(names, start=1):
            of = "TYPE_INT64" if name == "n" else "TYPE_STRING"
            message.field.add(name=name, number=number, type=of, label="LABEL_OPTIONAL")
        pool = descriptor_pool.DescriptorPool()
        pool.Add(file)
        document = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"example{version}.Document"))
        conf = {"use.deprecated.format": False, "subject.name.strategy": lambda ctx, name: f"{ctx.topic}-{name}"}
        serializer = ProtobufSerializer(document, registry, conf)
        serializers.append(lambda record, context, document=document, serializer=serializer: serializer(document(**record), context))
    return serializers


serializers = {"avro": avro, "protobuf": protobuf}[form]()
producer = Producer({"bootstrap.servers": bootstrap})
context = SerializationContext(topic, MessageField.VALUE)
n = 0
for line in sys.stdin:
    record = json.loads(line)
    while True:
        try:
            producer.produce(topic, serializers[n % 3 == 2](record, context), partition=0)
            break
        except BufferError:
            producer.poll(0.1)
    n += 1
assert producer.flush(60) == 0
print(n)
