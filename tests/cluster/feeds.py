"""Who talks to the workers of the live run: producers of documents, a trainer, and who sets quotas and deletes records on the broker."""
import contextlib
import json
import pathlib
import random
import socket
import struct
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
from confluent_kafka import Producer

SAMPLE = pathlib.Path(__file__).resolve().parents[2] / "src/cli/demo/sample.jsonl.zst"
# Of the trainer: steps a second, documents a step, ranks, and each how many steps the last one comes too late.
STEP_SECONDS = 0.5
BATCH = 48
RANKS = 2
LATE_EVERY = 6
DEADLINE_SECONDS = 1


def documents():
    with pa.input_stream(str(SAMPLE), compression="zstd") as stream:
        return [line for line in stream.read().splitlines() if line]


class Stream:
    """Documents a second of one topic; some of them are bad while `bad_share` says so."""

    def __init__(self, topic, partitions, rate, records):
        self.topic, self.partitions, self.rate, self.records, self.bad_share = topic, partitions, rate, records, 0


class Load(threading.Thread):
    """Produces to all streams until it is stopped."""

    def __init__(self, bootstrap, streams):
        super().__init__(daemon=True)
        self.producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 20})
        self.streams, self.random, self.stopped = streams, random.Random(0), threading.Event()

    def run(self):
        due = dict.fromkeys(self.streams, 0.0)
        while not self.stopped.wait(0.1):
            for stream in self.streams:
                due[stream] += stream.rate / 10
                for _ in range(int(due[stream])):
                    self.send(stream)
                due[stream] %= 1
            self.producer.poll(0)
        self.producer.flush(60)

    def send(self, stream):
        bad = self.random.random() < stream.bad_share
        record = self.random.choice([b"{", b"[]", b'{"text": 1}', b"\xff"] if bad else stream.records)
        while not self.stopped.is_set():
            try:
                return self.producer.produce(stream.topic, record, partition=self.random.randrange(stream.partitions))
            except BufferError:
                self.producer.poll(0.1)


class Trainer(threading.Thread):
    """Follows the manifest and says what it lost on each document: to the topic of feedback, and as a step of some ranks to whoever gives
    weights. Documents that are not the pipeline's are among them while `strangers` says so."""

    def __init__(self, bootstrap, topic, manifest, workers):
        super().__init__(daemon=True)
        self.producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 20})
        self.topic, self.manifest, self.workers = topic, manifest, workers
        self.stopped, self.strangers, self.position = threading.Event(), 0, 0

    def run(self):
        step, late = 0, []
        while not self.stopped.wait(STEP_SECONDS):
            batch = self.batch()
            if not batch:
                continue
            of_rank = [self.report(step, rank, batch[rank::RANKS]) for rank in range(RANKS)]
            for rank, report in enumerate(of_rank):
                self.producer.produce(f"{self.topic}-losses", json.dumps(report), key=f"run/{rank}", partition=rank)
            for n in range(self.strangers):
                strangers = [(f"nobody-{step}-{n}-{i}", "elsewhere") for i in range(BATCH)]
                report = self.report(step, 0, strangers) | {"run_id": f"other-{n}"}
                self.producer.produce(f"{self.topic}-losses", json.dumps(report), key=f"other-{n}/0", partition=0)
            if step % LATE_EVERY == 0:
                late.append((time.monotonic() + 2 * DEADLINE_SECONDS, of_rank.pop()))
            # The topic's own answers need no reader here.
            while late and late[0][0] < time.monotonic():
                of_rank.append(late.pop(0)[1])
            for report in of_rank:
                self.producer.produce(f"{self.topic}-ranks", json.dumps(report), key="run")
            self.producer.poll(0)
            for worker in self.workers:
                with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                    # A worker may be away just now.
                    ask_for_weights(worker, json.dumps(self.report(step, 0, batch) | {"world_size": 1}).encode())
            step += 1
        self.producer.flush(60)

    def batch(self):
        """The newest shard that it has not read: a trainer that cannot keep up leaves the older ones out. None while there is none, or
        something is in the way."""
        with contextlib.suppress(OSError), self.manifest.open("rb") as lines:
            lines.seek(self.position)
            new = [line for line in lines if line.endswith(b"\n")]
            if new:
                path = self.manifest.parent / json.loads(new[-1])["path"]
                rows = pq.read_table(path, columns=["id", "source"]).to_pylist()
                self.position += sum(map(len, new))
                return [(row["id"], row["source"]) for row in rows[:BATCH]]
        return None

    @staticmethod
    def report(step, rank, batch):
        """What it wants to learn it finds hard. The noise of a document is its own."""
        loss = lambda id_, source: (3 if source in ("postgresql-doc", "python-doc") else 2) + zlib.crc32(id_.encode()) / 2**32
        losses = [{"id": id_, "loss": loss(id_, source), "n_tokens": 100} for id_, source in batch]
        return {"run_id": "run", "step": step, "rank": rank, "world_size": RANKS, "losses": losses}


def ask_for_weights(worker, body, seconds=30):
    request = urllib.request.Request(f"http://127.0.0.1:{worker.port}/v1/weights", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=seconds) as answer:
        while answer.read(1 << 20):
            pass


def limit_consumers(bootstrap, client, bytes_per_second):
    """Has the broker give clients of this client.id so many bytes a second; None: no limit. AlterClientQuotas (key 49, version 0) by hand, as
    no client of Python speaks it."""
    text = lambda s: struct.pack(">h", len(s)) + s.encode()
    header = struct.pack(">hhi", 49, 0, 1) + text("live")
    entity = struct.pack(">i", 1) + text("client-id") + text(client)
    limit = text("consumer_byte_rate") + struct.pack(">d?", bytes_per_second or 0, bytes_per_second is None)
    body = header + struct.pack(">i", 1) + entity + struct.pack(">i", 1) + limit + struct.pack(">?", False)
    host, port = bootstrap.split(",")[0].rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=60) as broker, broker.makefile("rb") as answers:
        broker.sendall(struct.pack(">i", len(body)) + body)
        answer = answers.read(struct.unpack(">i", answers.read(4))[0])
    # Correlation, throttle time, number of entries, then the error of the first.
    if (error := struct.unpack_from(">h", answer, 12)[0]) != 0:
        sys.exit(f"live: a quota for {client}: the broker answers error {error}")
