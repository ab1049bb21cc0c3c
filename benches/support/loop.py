"""A running winnowd and its trainer's side: documents into Kafka, shards out, losses back, weights for a step."""
import http.client
import json
import pathlib
import re
import signal
import subprocess
import time
import urllib.request

import pyarrow.parquet
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

DEADLINE_SECONDS = 900


def wait_for(what, ready):
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (value := ready()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {DEADLINE_SECONDS} s")
        time.sleep(0.05)
    return value


class Loop:
    """`winnowd run` on topics of its own. To be used in a `with`."""

    def __init__(self, winnowd, broker, folder, name, settings):
        self.folder, self.name, self.n_sent = pathlib.Path(folder), name, 0
        self.folder.mkdir()
        topics = [NewTopic(topic, 1, 1) for topic in (f"{name}-documents", f"{name}-losses")]
        self.admin = AdminClient({"bootstrap.servers": broker})
        for created in self.admin.create_topics(topics).values():
            created.result(60)
        self.producer = Producer({"bootstrap.servers": broker, "linger.ms": 20, "enable.idempotence": True})
        config = self.folder / "winnowd.toml"
        default = {
            "pipeline.name": "losses",
            "kafka.bootstrap": broker,
            "kafka.topics": [f"{name}-documents"],
            "kafka.group": name,
            "feedback.topic": f"{name}-losses",
            "feedback.interval": "200ms",
            "window.idle_timeout": "500ms",
            "shard.max_age": "500ms",
            "sink.url": f"{self.folder}/out",
            "catalog.url": f"sqlite://{self.folder}/catalog.db",
            "http.listen": "127.0.0.1:0",
        }
        config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in (default | settings).items()))
        self.log = self.folder / "log"
        with open(self.log, "wb") as log:
            self.daemon = subprocess.Popen([winnowd, "run", "-c", config], stdout=log, stderr=log)

    def __enter__(self):
        try:
            self.address = wait_for("the start of winnowd", self.listens)[1]
        except BaseException:
            self.daemon.kill()
            raise
        self.connection = http.client.HTTPConnection(self.address, timeout=60)
        return self

    def __exit__(self, *_):
        self.connection.close()
        self.daemon.send_signal(signal.SIGTERM)
        self.daemon.wait(DEADLINE_SECONDS)
        topics = [f"{self.name}-documents", f"{self.name}-losses"]
        for deleted in self.admin.delete_topics(topics).values():
            deleted.result(60)

    def listens(self):
        self.alive()
        return re.search(r"on http://(\S+)", self.log.read_text())

    def alive(self):
        if self.daemon.poll() is not None:
            raise ChildProcessError(f"winnowd ended: {self.log.read_text()[-3000:]}")

    def metric(self, name):
        """A sum over labels."""
        self.alive()
        text = urllib.request.urlopen(f"http://{self.address}/metrics", timeout=60).read().decode()
        return sum(float(line.split()[-1]) for line in text.splitlines() if re.match(rf"{name}[ {{]", line))

    def status(self):
        return json.load(urllib.request.urlopen(f"http://{self.address}/status", timeout=60))

    def send(self, topic, payloads):
        for payload in payloads:
            while True:
                try:
                    self.producer.produce(f"{self.name}-{topic}", json.dumps(payload), key=self.name)
                    break
                except BufferError:
                    self.producer.poll(0.1)
            self.producer.poll(0)
        if self.producer.flush(DEADLINE_SECONDS):
            raise TimeoutError(f"the broker did not take all of topic {self.name}-{topic}")

    def select(self, documents):
        """Ids of what is selected of documents, in the order of their positions."""
        known = set(self.published())
        self.send("documents", documents)
        self.n_sent += len(documents)
        wait_for("the decision of all documents", lambda: self.metric("winnowd_catalog_documents") == self.n_sent)
        return [id for id in self.published() if id not in known]

    def published(self):
        manifest = self.folder / "out/manifest.jsonl"
        lines = lambda: manifest.read_text().splitlines() if manifest.exists() else []
        # It is written after the transaction that counts documents.
        wait_for("the manifest", lambda: len(lines()) == self.metric("winnowd_catalog_shards"))
        shards = [pyarrow.parquet.read_table(self.folder / "out" / json.loads(line)["path"], columns=["id", "offset"])
                  for line in lines()]
        rows = [row for shard in shards for row in shard.to_pylist()]
        return [row["id"] for row in sorted(rows, key=lambda row: row["offset"])]

    def weights(self, run_id, step, losses, n_tokens):
        """Of the samples of a step, from `POST /v1/weights`; they sum to 1."""
        body = {"run_id": run_id, "step": step, "doc_ids": list(map(str, range(len(losses)))),
                "loss_sum": [float(loss * n) for loss, n in zip(losses, n_tokens)], "tokens": list(map(int, n_tokens))}
        self.connection.request("POST", "/v1/weights", json.dumps(body), {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"step {step} of run {run_id}: {answer.status} {text.decode()}")
        return [sample["weight"] for sample in json.loads(text)["weights"]]
