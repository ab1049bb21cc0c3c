#!/usr/bin/env python3
"""Alerts and dashboards against a real Prometheus that scrapes a real run, with faults.

    live.py WINNOWD PROMETHEUS BOOTSTRAP POSTGRES [--out FOLDER]

Starts two workers on a topic and an empty database (POSTGRES, a URL) of their own and Prometheus with the chart's alerts, and
feeds them documents of the bundled sample, of which a model with two targets selects. A trainer reads the shards, reports losses and
asks for weights, over HTTP and over topics. While all is well no alert may fire; then come bad records, losses of unknown documents, a
store that refuses shards, a manifest that cannot be written and `kill -9`, each of which must be told by its alert. Every metric must
be asked for by a dashboard, an alert or the autoscaler, and every query of every panel must have returned numbers; --out draws each
dashboard. Alerts wait 5 s here before they fire, not minutes.
"""
import argparse
import contextlib
import ctypes
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "helm/winnowd"
SAMPLE = ROOT / "src/cli/demo/sample.jsonl.zst"
PARTITIONS = 6
RATE = 1500
TARGETS = {"postgresql": b'"postgresql-doc"', "python": b'"python-doc"'}
# Of the trainer: steps a second, documents a step, ranks, and each how many steps the last one comes too late.
STEP_SECONDS = 0.5
BATCH = 48
RANKS = 2
LATE_EVERY = 6
DEADLINE_SECONDS = 1
HEALTHY_SECONDS = 20
PATIENCE = 60


def wait_for(what, ready, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not (value := ready()):
        if time.monotonic() > deadline:
            sys.exit(f"live: {what} did not happen within {seconds} s")
        time.sleep(0.2)
    return value


def documents():
    with pa.input_stream(str(SAMPLE), compression="zstd") as stream:
        return [line for line in stream.read().splitlines() if line]


def free_port():
    """Below the ports that the kernel gives to whoever asks for any: it stays free until it is wanted, and between two starts."""
    while True:
        port = random.randrange(10_000, 20_000)
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port


def end(process):
    process.kill()
    process.wait()


def get(url):
    with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
        return urllib.request.urlopen(url, timeout=10).read().decode()
    return None


class Load(threading.Thread):
    """Produces until it is stopped; some of the records are bad while `bad_share` says so."""

    def __init__(self, bootstrap, topic, records):
        super().__init__(daemon=True)
        self.producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 20})
        self.topic, self.records, self.random = topic, records, random.Random(0)
        self.stopped, self.bad_share = threading.Event(), 0

    def run(self):
        while not self.stopped.wait(0.1):
            for _ in range(RATE // 10):
                bad = self.random.random() < self.bad_share
                record = self.random.choice([b"{", b"[]", b'{"text": 1}', b"\xff"] if bad else self.records)
                self.producer.produce(self.topic, record, partition=self.random.randrange(PARTITIONS))
            self.producer.poll(0)
        self.producer.flush(30)


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
                self.ask(worker, self.report(step, 0, batch))
            step += 1
        self.producer.flush(30)

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

    def ask(self, worker, report):
        """A worker may be away just now."""
        report = {**report, "world_size": 1}
        request = urllib.request.Request(
            f"http://127.0.0.1:{worker.port}/v1/weights", json.dumps(report).encode(), {"Content-Type": "application/json"}
        )
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(request, timeout=10).read()


class Worker:
    """One that can be killed and comes back at the same address, as a pod does."""

    def __init__(self, winnowd, folder, number, config):
        self.name, self.port, self.log = f"winnowd-{number}", free_port(), folder / f"worker-{number}.log"
        self.command = [winnowd, "run", "-c", folder / f"worker-{number}.toml"]
        own = f'kafka.instance_id = "{self.name}"\nhttp.listen = "127.0.0.1:{self.port}"\n'
        self.command[-1].write_text(config + own)
        self.start()

    def start(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)

    def is_ready(self):
        if self.process.poll() is not None:
            sys.exit(f"live: {self.name} ended:\n{self.log.read_text()[-3000:]}")
        return get(f"http://127.0.0.1:{self.port}/readyz")

    def end(self, how):
        self.process.send_signal(how)
        self.process.wait(60)


class Prometheus:
    def __init__(self, program, folder, workers):
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        rules = (CHART / "files/alerts.yaml").read_text()
        (folder / "alerts.yaml").write_text(re.sub(r"for: \w+$", "for: 5s", rules, flags=re.M))
        labels = lambda worker: {"namespace": "curation", "job": "winnowd", "pod": worker.name}
        targets = [{"targets": [f"127.0.0.1:{worker.port}"], "labels": labels(worker)} for worker in workers]
        # JSON is YAML.
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(folder / "alerts.yaml")],
            "scrape_configs": [{"job_name": "winnowd", "static_configs": targets}],
        }
        (folder / "prometheus.json").write_text(json.dumps(config))
        command = [program, f"--config.file={folder}/prometheus.json", f"--storage.tsdb.path={folder}/prometheus"]
        with open(folder / "prometheus.log", "wb") as log:
            self.process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
        wait_for("the start of Prometheus", lambda: get(f"{self.address}/-/ready"))

    def ask(self, path, **parameters):
        answer = get(f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        if answer is None:
            sys.exit(f"live: Prometheus refuses {parameters}")
        return json.loads(answer)["data"]["result"]

    def firing(self):
        return {s["metric"]["alertname"] for s in self.ask("query", query='ALERTS{alertstate="firing"}')}


def prepare(winnowd, folder, bootstrap, topic, catalog, records):
    for name, source in TARGETS.items():
        (folder / f"{name}.jsonl").write_bytes(b"".join(record + b"\n" for record in records if source in record))
    targets = [f"{name}={folder}/{name}.jsonl" for name in TARGETS]
    subprocess.run([winnowd, "fit", "--target", *targets, "--raw", SAMPLE, "--out", folder / "model.wnw"], check=True, capture_output=True)
    return f"""
pipeline.name = "live"
kafka.bootstrap = "{bootstrap}"
kafka.topics = ["{topic}"]
kafka.group = "{topic}"
kafka.session_timeout = "6s"
dead_letters.topic = "{topic}-dead"
dead_letters.max_ratio = 1
model.path = "{folder}/model.wnw"
model.raw = "adaptive"
selection.length_normalise = true
selection.temperature = 0.3
selection.mixing = "odm"
selection.coverage_sample = 4
feedback.topic = "{topic}-losses"
losses.topic = "{topic}-ranks"
losses.weights_topic = "{topic}-weights"
losses.deadline = "{DEADLINE_SECONDS}s"
loss_weight.burn_in_steps = 0
window.max_documents = 500
window.idle_timeout = "2s"
shard.max_age = "2s"
memory.budget = "128MiB"
sink.url = "{folder}/out"
catalog.url = "{catalog}"
"""


@contextlib.contextmanager
def in_the_way(path):
    """A folder where a file is wanted, or a file where a folder is, until the end. Exchanged at one stroke: a worker is quick."""
    other = path.with_name(path.name + ".other")
    other.mkdir() if path.is_file() else other.touch()
    exchange(path, other)
    yield
    exchange(path, other)


def exchange(one, other):
    here, at_one_stroke = -100, 2
    if ctypes.CDLL(None, use_errno=True).renameat2(here, bytes(one), here, bytes(other), at_one_stroke) != 0:
        sys.exit(f"live: {one} and {other} cannot be exchanged: {os.strerror(ctypes.get_errno())}")


def tell(prometheus, alert, began):
    wait_for(f"the alert {alert}", lambda: alert in prometheus.firing())
    print(f"  {alert} fires after {time.monotonic() - began:.0f} s")


def faults(prometheus, load, trainer, workers, out):
    """One after another; each is told of, and told of no more when it is over."""
    began = time.monotonic()
    load.bad_share, trainer.strangers = 0.2, 5
    tell(prometheus, "WinnowdDeadLetters", began)
    tell(prometheus, "WinnowdFeedbackLost", began)
    if found := prometheus.ask("query", query="winnowd_feedback_bad_reports_total > 0"):
        sys.exit(f"live: reports that the trainer means well cannot be read: {found}")
    load.bad_share, trainer.strangers = 0, 0
    for place, alert in ((out / "shards", "WinnowdPublishStalled"), (out / "manifest.jsonl", "WinnowdManifestBehind")):
        began = time.monotonic()
        with in_the_way(place):
            tell(prometheus, alert, began)
        wait_for(f"the end of the alert {alert}", lambda: alert not in prometheus.firing())
    began = time.monotonic()
    for worker in workers:
        worker.end(signal.SIGKILL)
    tell(prometheus, "WinnowdDown", began)
    for worker in workers:
        worker.start()
    for worker in workers:
        wait_for(f"{worker.name} is back", worker.is_ready)
    wait_for("the end of the alert WinnowdDown", lambda: "WinnowdDown" not in prometheus.firing())
    again = f"count(winnowd_published_shards_total > 2) == {len(workers)}"
    wait_for("publications of all workers", lambda: prometheus.ask("query", query=again))


def metric_names(text):
    return {re.sub("_(bucket|sum|count)$", "", name) for name in re.findall(r"\bwinnowd_\w+", text)}


def same_names(worker):
    """Names that alerts, dashboards and the autoscaler ask for, against those that there are."""
    there = metric_names(get(f"http://127.0.0.1:{worker.port}/metrics"))
    files = [CHART / "files/alerts.yaml", CHART / "templates/autoscaling.yaml", *CHART.glob("files/dashboards/*.json")]
    asked = {name for file in files for name in metric_names(file.read_text())}
    if asked - there:
        sys.exit(f"live: no such metric: {sorted(asked - there)}")
    if there - asked:
        sys.exit(f"live: nobody asks for these metrics: {sorted(there - asked)}")
    print(f"  all {len(there)} metrics are asked for")


def answers(prometheus, began):
    """Every query of every panel, over the whole run: dashboard → panels with their series."""
    seen, empty = {}, []
    for path in sorted(CHART.glob("files/dashboards/*.json")):
        dashboard = json.loads(path.read_text())
        for panel in panels_of(dashboard):
            if not panel["description"] or "Good:" not in panel["description"] or not panel["fieldConfig"]["defaults"]["unit"]:
                sys.exit(f"live: {path.name}, {panel['title']}: no unit, or no word of what is good")
            panel["series"] = []
            for target in panel["targets"]:
                expression = re.sub(r"\$(namespace|job|pod)\b", ".*", target["expr"]).replace("$__rate_interval", "15s")
                # It publishes each two seconds, not each eleven minutes.
                expression = expression.replace("[15m]", "[30s]")
                found = prometheus.ask("query_range", query=expression, start=began, end=time.time(), step=1)
                numbers = [value for series in found for _, value in series["values"] if value not in ("NaN", "+Inf", "-Inf")]
                if not numbers:
                    empty.append(f"{path.name}, {panel['title']}: {expression}")
                panel["series"] += [(legend(target["legendFormat"], series["metric"]), series["values"]) for series in found]
        seen[path.stem] = dashboard
    if empty:
        sys.exit("live: no data:\n  " + "\n  ".join(empty))
    return seen


def panels_of(dashboard):
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def legend(form, labels):
    return re.sub(r"\{\{(\w+)\}\}", lambda m: labels.get(m[1], ""), form) or "value"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("winnowd", "prometheus", "bootstrap", "postgres"):
        parser.add_argument(name)
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()

    topic = f"documents-{time.time_ns() % 1_000_000_000}"
    admin = AdminClient({"bootstrap.servers": arguments.bootstrap})
    others = [NewTopic(f"{topic}-{name}", n, 1) for name, n in (("dead", 1), ("losses", RANKS), ("ranks", 2), ("weights", 1))]
    for future in admin.create_topics([NewTopic(topic, PARTITIONS, 1), *others]).values():
        future.result(30)
    records, began = documents(), time.time()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as last:
        folder = pathlib.Path(folder)
        config = prepare(arguments.winnowd, folder, arguments.bootstrap, topic, arguments.postgres, records)
        workers = [Worker(arguments.winnowd, folder, n, config) for n in range(2)]
        for worker in workers:
            last.callback(lambda worker=worker: end(worker.process))
        for worker in workers:
            wait_for(f"{worker.name} is ready", worker.is_ready)
        load = Load(arguments.bootstrap, topic, records)
        load.start()
        trainer = Trainer(arguments.bootstrap, topic, folder / "out/manifest.jsonl", workers)
        trainer.start()
        prometheus = Prometheus(arguments.prometheus, folder, workers)
        last.callback(end, prometheus.process)

        published = f"count(winnowd_published_shards_total > 0) == {len(workers)}"
        wait_for("the first publication of each worker", lambda: prometheus.ask("query", query=published))
        # Until then nothing was published although records waited.
        wait_for("an end of all alerts", lambda: not prometheus.firing())
        alerts, until = set(), time.monotonic() + HEALTHY_SECONDS
        while time.monotonic() < until:
            alerts |= prometheus.firing()
            time.sleep(1)
        if alerts:
            sys.exit(f"live: all is well, and yet these fire: {sorted(alerts)}")
        print(f"  no alert within {HEALTHY_SECONDS} s of health")
        for loop, metric in (
            ("losses that count", 'winnowd_feedback_losses_total{outcome="counted"}'),
            ("weights over HTTP", 'winnowd_weighed_batches_total{by="http"}'),
            ("weights over topics", 'winnowd_weighed_batches_total{by="topic", why="complete"}'),
            ("steps without a rank", 'winnowd_weighed_batches_total{by="topic", why="deadline"}'),
            ("late reports", 'winnowd_loss_reports_total{outcome="late"}'),
            ("quotas", "winnowd_feedback_quota_ratio"),
        ):
            wait_for(loop, lambda metric=metric: prometheus.ask("query", query=f"{metric} > 0"))
        same_names(workers[0])
        faults(prometheus, load, trainer, workers, folder / "out")
        for thread in (trainer, load):
            thread.stopped.set()
            thread.join(60)
        seen = answers(prometheus, began)
        panels = [panel for dashboard in seen.values() for panel in panels_of(dashboard)]
        for worker in workers:
            worker.end(signal.SIGTERM)
    if arguments.out:
        from draw import draw

        arguments.out.mkdir(parents=True, exist_ok=True)
        for name, dashboard in seen.items():
            draw(dashboard, arguments.out / f"{name}.png")
    print(f"live: {sum(len(panel['targets']) for panel in panels)} queries of {len(panels)} panels have data")


main()
