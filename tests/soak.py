#!/usr/bin/env python3
"""A worker under a load that rises and falls for many minutes: does anything grow that should not?

    soak.py WINNOWD BOOTSTRAP [--minutes 10] [--out soak.png] [--seed N]

Fits a model to the bundled sample, starts `winnowd run` on a topic of its own (SQLite, a folder), and produces documents of
the sample at 500 to 6,000 a second. Each second it reads the resident size, the open file descriptors and threads of the
process and the lags of its metrics, and draws them. Fails if the worker ends, forgets a document, grows beyond its budget, or
uses more memory or descriptors in the last third than in the middle one. Needs confluent-kafka, pyarrow and matplotlib.
"""
import argparse
import json
import os
import pathlib
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pyarrow as pa
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

SAMPLE = pathlib.Path(__file__).resolve().parent.parent / "src/cli/demo/sample.jsonl.zst"
PARTITIONS = 12
BUDGET_MIB = 128
# What the process itself may take.
BESIDE_MIB = 150
# Documents a second, each for a sixth of a cycle.
RATES = [500, 2000, 6000, 2000, 500, 4000]
CYCLE_SECONDS = 120
START_SECONDS = 60
END_SECONDS = 120


def documents():
    with pa.input_stream(str(SAMPLE), compression="zstd") as stream:
        return [line for line in stream.read().splitlines() if line]


def is_wanted(record):
    try:
        return json.loads(record).get("source") in ("postgresql-doc", "python-doc")
    except ValueError:
        return False


def prepare(winnowd, folder, bootstrap, topic, records):
    target = folder / "target.jsonl"
    target.write_bytes(b"\n".join(r for r in records if is_wanted(r)) + b"\n")
    command = [winnowd, "fit", "--target", target, "--raw", SAMPLE, "--out", folder / "model.wnw"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    config = folder / "winnowd.toml"
    config.write_text(
        f"""
pipeline.name = "soak"
kafka.bootstrap = "{bootstrap}"
kafka.topics = ["{topic}"]
kafka.group = "{topic}"
model.path = "{folder}/model.wnw"
model.against = "selected"
selection.fraction = 0.1
selection.length_normalise = true
selection.temperature = 0.1
window.max_documents = 2000
window.idle_timeout = "2s"
shard.max_age = "5s"
memory.budget = "{BUDGET_MIB}MiB"
sink.url = "{folder}/out"
catalog.url = "sqlite://{folder}/catalog.db"
http.listen = "127.0.0.1:0"
"""
    )
    return config


def wait_for(what, seconds, ready):
    deadline = time.monotonic() + seconds
    while not (value := ready()):
        if time.monotonic() > deadline:
            sys.exit(f"soak: {what} did not happen within {seconds} s")
        time.sleep(0.1)
    return value


class Load(threading.Thread):
    """Produces until it is stopped; a broker that is slow slows it down."""

    def __init__(self, bootstrap, topic, records, seed):
        super().__init__(daemon=True)
        self.producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 20, "enable.idempotence": True})
        self.topic, self.records, self.random = topic, records, random.Random(seed)
        self.stopped, self.sent, self.undelivered = threading.Event(), 0, 0

    def run(self):
        began = time.monotonic()
        while not self.stopped.wait(0.1):
            phase = (time.monotonic() - began) % CYCLE_SECONDS / CYCLE_SECONDS
            for _ in range(RATES[int(phase * len(RATES))] // 10):
                record, partition = self.random.choice(self.records), self.random.randrange(PARTITIONS)
                while True:
                    try:
                        self.producer.produce(self.topic, record, partition=partition)
                        break
                    except BufferError:
                        self.producer.poll(0.1)
                self.sent += 1
            self.producer.poll(0)
        self.undelivered = self.producer.flush(60)


def metrics(address):
    text = urllib.request.urlopen(f"{address}/metrics", timeout=10).read().decode()
    sums = {}
    for line in text.splitlines():
        if match := re.match(r'(\w+)(?:\{([^}]*)\})? ([0-9.e+-]+)$', line):
            name, labels, value = match.groups()
            until = re.search(r'until="(\w+)"', labels or "")
            key = f"{name}:{until[1]}" if until else name
            sums[key] = sums.get(key, 0) + float(value)
    return sums


def look(pid, address, seconds):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    number = lambda name: int(re.search(rf"^{name}:\s+(\d+)", status, re.M)[1])
    seen = metrics(address)
    return {
        "seconds": seconds,
        "resident_mib": number("VmRSS") / 1024,
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": number("Threads"),
        "consumed_lag": seen.get("winnowd_lag_records:consumed", 0),
        "published_lag": seen.get("winnowd_lag_records:published", 0),
        "held_mib": seen.get("winnowd_held_bytes", 0) / (1 << 20),
        "decided": seen.get("winnowd_catalog_documents", 0),
    }


def draw(samples, out):
    minutes = [s["seconds"] / 60 for s in samples]
    of = lambda name: [s[name] for s in samples]
    figure, (memory, lag, files, rate) = plt.subplots(4, 1, figsize=(10, 11), sharex=True, layout="constrained")
    memory.plot(minutes, of("resident_mib"), label="resident")
    memory.plot(minutes, of("held_mib"), label="held by queue, windows and shard")
    memory.axhline(BUDGET_MIB, linestyle=":", color="gray", label="memory.budget")
    memory.axhline(BUDGET_MIB + BESIDE_MIB, linestyle="--", color="firebrick", label="allowed")
    memory.set_ylabel("MiB")
    lag.plot(minutes, of("published_lag"), label="until published")
    lag.plot(minutes, of("consumed_lag"), label="until consumed")
    lag.set_ylabel("lag, records")
    files.plot(minutes, of("descriptors"), label="file descriptors")
    files.plot(minutes, of("threads"), label="threads")
    files.set_ylabel("number")
    steps = list(zip(samples, samples[10:]))
    decided = [(b["decided"] - a["decided"]) / (b["seconds"] - a["seconds"]) for a, b in steps]
    rate.plot(minutes[10:], decided, label="decided, mean of ten seconds")
    rate.set_ylabel("documents/s")
    rate.set_xlabel("minutes")
    for axes in (memory, lag, files, rate):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left", fontsize="small", ncols=4)
    figure.suptitle("winnowd under a load of 500 to 6,000 documents/s")
    figure.savefig(out, dpi=90)


def judge(samples, sent):
    n = len(samples)
    middle, last = samples[n // 3 : 2 * n // 3], samples[2 * n // 3 :]
    median = lambda part, name: statistics.median(s[name] for s in part)
    problems = []
    peak = max(s["resident_mib"] for s in samples)
    if peak > BUDGET_MIB + BESIDE_MIB:
        problems.append(f"resident size {peak:.0f} MiB, budget {BUDGET_MIB} MiB")
    for name, slack in [("resident_mib", 24), ("descriptors", 4), ("threads", 2)]:
        before, after = median(middle, name), median(last, name)
        if after > before + slack:
            problems.append(f"{name} grew from {before:.0f} in the middle third to {after:.0f} in the last")
    if samples[-1]["decided"] != sent:
        problems.append(f"{samples[-1]['decided']:.0f} of {sent} documents decided")
    print(
        f"soak: {sent} documents in {samples[-1]['seconds'] / 60:.1f} minutes; resident {peak:.0f} MiB at most, "
        f"{median(middle, 'resident_mib'):.0f} then {median(last, 'resident_mib'):.0f} (medians of the middle and last third); "
        f"descriptors {median(middle, 'descriptors'):.0f} then {median(last, 'descriptors'):.0f}; "
        f"consumed lag {max(s['consumed_lag'] for s in samples):.0f} at most, "
        f"published lag {max(s['published_lag'] for s in samples):.0f}"
    )
    return problems


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("winnowd")
    parser.add_argument("bootstrap")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--out", default="soak.png")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    records = documents()
    topic = f"soak-{os.getpid()}-{time.time_ns() % 1_000_000_000}"
    admin = AdminClient({"bootstrap.servers": arguments.bootstrap})
    admin.create_topics([NewTopic(topic, PARTITIONS, 1)])[topic].result(30)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        config = prepare(arguments.winnowd, folder, arguments.bootstrap, topic, records)
        log = folder / "log"
        with open(log, "wb") as errors:
            worker = subprocess.Popen([arguments.winnowd, "run", "-c", config], stderr=errors, stdout=errors)
        try:
            found = lambda: worker.poll() is not None or re.search(r"on (http://\S+)", log.read_text())
            address = wait_for("the start of the worker", START_SECONDS, found)
            if worker.poll() is not None:
                sys.exit(f"soak: the worker ended at once:\n{log.read_text()}")
            address = address[1]
            load = Load(arguments.bootstrap, topic, records, arguments.seed)
            load.start()
            began, samples = time.monotonic(), []
            sample = lambda: samples.append(look(worker.pid, address, time.monotonic() - began))
            while time.monotonic() - began < 60 * arguments.minutes:
                time.sleep(1)
                if worker.poll() is not None:
                    sys.exit(f"soak: the worker ended:\n{log.read_text()[-5000:]}")
                sample()
            load.stopped.set()
            load.join(90)
            if load.is_alive() or load.undelivered:
                sys.exit(f"soak: the broker did not take {load.undelivered or 'all'} of {load.sent} documents")

            def is_done():
                sample()
                return samples[-1]["decided"] >= load.sent

            wait_for("the decision of all documents", END_SECONDS, is_done)
            worker.send_signal(signal.SIGTERM)
            if (code := worker.wait(60)) != 0:
                sys.exit(f"soak: exit code {code}:\n{log.read_text()[-5000:]}")
        finally:
            worker.kill()
            worker.wait()
        warnings = [line for line in log.read_text().splitlines() if " WARN " in line or " ERROR " in line]
    draw(samples, arguments.out)
    problems = judge(samples, load.sent)
    print(f"soak: drawn in {arguments.out}; {len(warnings)} warnings and errors in the log", *warnings[:10], sep="\n  ")
    if problems:
        sys.exit("soak: " + "; ".join(problems))


main()
