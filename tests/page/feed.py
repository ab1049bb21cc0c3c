#!/usr/bin/env python3
"""Documents for the page to show.

    feed.py target FILE SOURCE…                          the documents of the sample that are from these sources
    feed.py topic BOOTSTRAP TOPIC PARTITIONS             makes a topic
    feed.py send BOOTSTRAP TOPIC NUMBER [--rate N] [--source S]
                                                         so many documents of the sample, in turn; at once, or so many a second
    feed.py report BOOTSTRAP TOPIC NUMBER                a trainer's losses of the first so many documents

With --source every tenth document has that source. Needs confluent-kafka and pyarrow.
"""
import argparse
import itertools
import json
import pathlib
import time

import pyarrow as pa

SAMPLE = pathlib.Path(__file__).resolve().parents[2] / "src/cli/demo/sample.jsonl.zst"


def documents():
    with pa.input_stream(str(SAMPLE), compression="zstd") as stream:
        for line in stream.read().splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                pass  # Broken on purpose.


def target(file, sources):
    wanted = [json.dumps(document) for document in documents() if document.get("source") in sources]
    pathlib.Path(file).write_text("\n".join(wanted) + "\n")


def topic(bootstrap, name, partitions):
    from confluent_kafka.admin import AdminClient, NewTopic

    client = AdminClient({"bootstrap.servers": bootstrap})
    client.create_topics([NewTopic(name, partitions, 1)])[name].result(60)


def send(bootstrap, name, number, rate, source):
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 20, "enable.idempotence": True})
    usable = [document for document in documents() if isinstance(document.get("text"), str)]
    began = time.monotonic()
    for n, document in zip(range(number), itertools.cycle(usable)):
        document = {**document, "id": f"d{n}"}
        if source and n % 10 == 0:
            document["source"] = source
        while True:
            try:
                producer.produce(name, json.dumps(document).encode())
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
        if rate and n % 10 == 0:
            # The rate is what is sent, not what a test waits for.
            time.sleep(max(0.0, began + n / rate - time.monotonic()))
    if left := producer.flush(60):
        raise SystemExit(f"feed: {left} documents were not delivered")


def report(bootstrap, name, number):
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": bootstrap})
    losses = [{"id": f"d{n}", "loss": 2 + n % 7 / 4, "n_tokens": 100} for n in range(number)]
    producer.produce(name, json.dumps({"run_id": "r", "step": 1, "rank": 0, "world_size": 1, "losses": losses}).encode(), key=b"0")
    if producer.flush(60):
        raise SystemExit("feed: the report was not delivered")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    of_target = commands.add_parser("target")
    of_target.add_argument("file")
    of_target.add_argument("sources", nargs="+")
    of_topic = commands.add_parser("topic")
    of_send = commands.add_parser("send")
    for command in (of_topic, of_send, commands.add_parser("report")):
        command.add_argument("bootstrap")
        command.add_argument("topic")
        command.add_argument("number", type=int)
    of_send.add_argument("--rate", type=int, default=0)
    of_send.add_argument("--source", default="")
    arguments = parser.parse_args()
    if arguments.command == "target":
        target(arguments.file, arguments.sources)
    elif arguments.command == "topic":
        topic(arguments.bootstrap, arguments.topic, arguments.number)
    elif arguments.command == "report":
        report(arguments.bootstrap, arguments.topic, arguments.number)
    else:
        send(arguments.bootstrap, arguments.topic, arguments.number, arguments.rate, arguments.source)


if __name__ == "__main__":
    main()
