"""A trainer at its smallest: reads published shards, trains a language model on them, and says what it lost on each document.

    python3 tests/trainer.py DATA --bootstrap HOST:PORT --topic losses [--checkpoint FILE]

DATA is the folder of `sink.url`. The model is an interpolated bigram model over hashed words: loss before learning, so every loss is
of a document that it has never seen. Needs pyarrow and confluent-kafka. (`step_trainer.py` weighs the samples of its steps.)

A step is a batch. Steps and batches follow from the manifest alone: a trainer that died without a checkpoint repeats them, and
winnowd does not count them twice. With a checkpoint it goes on behind the last line of the manifest that it has read whole.
"""

import argparse
import collections
import json
import math
import pathlib
import re
import sys
import zlib

import confluent_kafka
import pyarrow.parquet as pq

VOCABULARY = 1 << 14
BATCH = 16


class Bigrams:
    """P(b | a) = (count(a, b) + k P(b)) / (count(a) + k), with P(b) smoothed by a uniform distribution."""

    def __init__(self, k=4.0):
        self.k = k
        self.pairs = collections.defaultdict(float)
        self.firsts = collections.defaultdict(float)
        self.words = collections.defaultdict(float)
        self.total = 0.0

    @staticmethod
    def tokens(text):
        return [zlib.crc32(word.encode()) % VOCABULARY for word in re.findall(r"\w+|[^\w\s]+", text.lower())]

    def loss(self, tokens):
        """Sum of cross-entropies in nats."""
        loss, before = 0.0, -1
        for token in tokens:
            unigram = (self.words[token] + 1.0) / (self.total + VOCABULARY)
            loss -= math.log((self.pairs[before, token] + self.k * unigram) / (self.firsts[before] + self.k))
            before = token
        return loss

    def learn(self, tokens):
        before = -1
        for token in tokens:
            self.words[token] += 1.0
            self.pairs[before, token] += 1.0
            self.firsts[before] += 1.0
            self.total += 1.0
            before = token


def documents(data, position):
    """Documents of the shards that the manifest names behind a position in bytes; with the position behind each shard."""
    manifest = pathlib.Path(data, "manifest.jsonl")
    if not manifest.exists():
        return
    with manifest.open("rb") as lines:
        lines.seek(position)
        for line in lines:
            if not line.endswith(b"\n"):
                return
            position += len(line)
            entry = json.loads(line)
            rows = pq.read_table(pathlib.Path(data, entry["path"]), columns=["id", "text"]).to_pylist()
            for row in rows:
                yield row["id"], row["text"], position


def batches(data, position):
    """A shard ends a batch: the next step begins where a checkpoint can."""
    batch, behind = [], position
    for id_, text, at in documents(data, position):
        if batch and (len(batch) == BATCH or at != behind):
            yield batch, behind
            batch = []
        batch.append((id_, text))
        behind = at
    if batch:
        yield batch, behind


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--run-id", default="bigrams")
    parser.add_argument("--checkpoint", type=pathlib.Path)
    options = parser.parse_args()
    position, step = 0, 0
    if options.checkpoint and options.checkpoint.exists():
        position, step = json.loads(options.checkpoint.read_text())
    producer = confluent_kafka.Producer({"bootstrap.servers": options.bootstrap, "linger.ms": 20})
    model, losses, refused = Bigrams(), [], []
    for batch, position in batches(options.data, position):
        tokens = [model.tokens(text) for _, text in batch]
        sums = [model.loss(of_document) for of_document in tokens]
        report = {
            "run_id": options.run_id,
            "step": step,
            "rank": 0,
            "world_size": 1,
            "doc_ids": [id_ for id_, _ in batch],
            "loss_sum": sums,
            "tokens": [len(of_document) for of_document in tokens],
        }
        # One partition a rank: its steps stay in order.
        failed = lambda error, _: refused.append(error) if error else None
        producer.produce(options.topic, json.dumps(report), key=f"{options.run_id}/0", on_delivery=failed)
        producer.poll(0)
        for of_document in tokens:
            model.learn(of_document)
        losses.append(sum(sums) / max(1, sum(map(len, tokens))))
        step += 1
    if producer.flush(60) or refused:
        sys.exit(f"reports were not delivered: {refused[:1]}")
    if options.checkpoint:
        options.checkpoint.write_text(json.dumps([position, step]))
    tenth = max(1, len(losses) // 10)
    mean = lambda some: sum(some) / len(some) if some else None
    print(json.dumps({"steps": step, "first_loss": mean(losses[:tenth]), "last_loss": mean(losses[-tenth:])}))


if __name__ == "__main__":
    main()
