"""A window of very many documents: into Kafka, through a running winnowd, and what it took."""
import collections
import json
import math
import pathlib
import random
import re
import signal
import subprocess
import time
import urllib.request

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from common import BENCHES, number, say, table

# Name → selector, and how its documents wait.
SELECTORS = {
    "importance_resampling": ("importance_resampling", "zstd"),
    "coverage": ("coverage", "zstd"),
    "coverage, not compressed": ("coverage", "none"),
}
BUDGET_MIB = 512
TEXT_BYTES, PIECE_BYTES = 4000, 500
SAMPLE = BENCHES.parent / "src/cli/demo/sample.jsonl.zst"
TOPIC = "documents"
MIB = 1 << 20
ROW_BYTES = 144
DEADLINE_SECONDS = 7200

Run = collections.namedtuple("Run", "selector consumed_per_s decided_per_s cpu_us deciding_s peak_bytes spool_bytes budget_bytes")


def sample_texts():
    lines = subprocess.run(["zstd", "-dc", SAMPLE], check=True, stdout=subprocess.PIPE).stdout.splitlines()
    return [json.loads(line)["text"] for line in lines]


def pieces(texts):
    """Parts of texts as they stand in JSON."""
    cut = (text[at:at + PIECE_BYTES] for text in texts for at in range(0, len(text) - PIECE_BYTES, PIECE_BYTES))
    return [json.dumps(piece, ensure_ascii=False)[1:-1] for piece in cut]


def documents(n):
    """Records of so many documents, no two of them the same. Most are easy, as most losses are low."""
    parts, chance = pieces(sample_texts()), random.Random(1)
    for i in range(n):
        text = " ".join(chance.choices(parts, k=TEXT_BYTES // PIECE_BYTES))
        hard = -math.log(1.0 - chance.random())
        yield f'{{"id":"document-{i:09}","hard":{hard!r},"text":"{i} {text}"}}'.encode()


def value(text, name):
    """Of a metric, a sum over labels."""
    return sum(float(line.split()[-1]) for line in text.splitlines() if re.match(rf"{name}[ {{]", line))


class Bench:
    def __init__(self, winnowd, broker, folder, n_documents, fraction, budget_mib):
        self.winnowd, self.broker, self.folder = winnowd, broker, pathlib.Path(folder)
        self.n, self.fraction, self.n_runs, self.n_bytes = n_documents, fraction, 0, 0
        # The one-pass selector holds what it selects, with its n-grams: it gets what that takes.
        one_pass_mib = budget_mib + int(2 * self.n * (fraction * 2 * TEXT_BYTES + 16)) // MIB
        self.budgets_mib = {name: budget_mib if of == "coverage" else one_pass_mib for name, (of, _) in SELECTORS.items()}
        self.model = self.folder / "fitted.model"

    def fit(self):
        texts = self.folder / "sample.jsonl"
        texts.write_bytes(subprocess.run(["zstd", "-dc", SAMPLE], check=True, stdout=subprocess.PIPE).stdout)
        target = self.folder / "target.jsonl"
        target.write_bytes(b"".join(texts.read_bytes().splitlines(keepends=True)[::50]))
        fit = ["fit", "--target", target, "--raw", texts, "--featuriser", "fast", "--out", self.model]
        subprocess.run([self.winnowd, *fit], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def produce(self):
        admin = AdminClient({"bootstrap.servers": self.broker})
        for created in admin.create_topics([NewTopic(TOPIC, 1, 1)]).values():
            created.result(60)
        settings = {"bootstrap.servers": self.broker, "linger.ms": 50, "batch.size": MIB, "enable.idempotence": True,
                    "compression.type": "lz4", "queue.buffering.max.kbytes": 256 << 10}
        producer, began = Producer(settings), time.monotonic()
        for i, record in enumerate(documents(self.n)):
            self.n_bytes += len(record)
            while True:
                try:
                    producer.produce(TOPIC, record)
                    break
                except BufferError:
                    producer.poll(0.1)
            if i % 1000 == 0:
                producer.poll(0)
        if producer.flush(DEADLINE_SECONDS):
            raise TimeoutError("the broker did not take all documents")
        say(f"{self.n:,} documents, {self.n_bytes / 1e9:.1f} GB, produced in {time.monotonic() - began:.0f} s; the broker's log takes "
            f"{self.log_bytes() / 1e9:.1f} GB")

    def log_bytes(self):
        return sum(file.stat().st_size for file in self.folder.glob(f"kafka/data/{TOPIC}-*/*.log"))

    def config(self, folder, name):
        # Twice the window with what stands beside its texts, and what is selected of it; and half of the memory.
        window_bytes = self.n_bytes + MIB
        waiting_bytes = window_bytes + ROW_BYTES * self.n
        memory_bytes = self.budgets_mib[name] * MIB
        selector, compression = SELECTORS[name]
        coverage = 'importance = "hard"' if selector == "coverage" else ""
        path = folder / "winnowd.toml"
        path.write_text(f"""
pipeline.name = "window-{self.n_runs}"
kafka.bootstrap = "{self.broker}"
kafka.topics = ["{TOPIC}"]
kafka.group = "window-{self.n_runs}"
model.path = "{self.model}"
memory.budget = "{memory_bytes}B"
sink.url = "{folder}/out"
sink.scratch_dir = "{folder}"
catalog.url = "sqlite://{folder}/catalog.db"
http.listen = "127.0.0.1:0"
[selection]
selector = "{selector}"
fraction = {self.fraction}
min_tokens = 0
length_normalise = true
temperature = 0.3
{coverage}
[window]
max_documents = {self.n}
max_bytes = "{window_bytes}B"
max_age = "7d"
[shard]
max_rows = {int(self.n * self.fraction)}
[spool]
compression = "{compression}"
max_bytes = "{2 * waiting_bytes + int(2.1 * self.fraction * waiting_bytes) + memory_bytes}B"
""")
        return path

    def run(self, selector):
        self.n_runs += 1
        folder = self.folder / f"run-{self.n_runs}"
        folder.mkdir()
        log = folder / "log"
        config = self.config(folder, selector)
        with open(log, "wb") as out:
            daemon = subprocess.Popen([self.winnowd, "run", "-c", config], stdout=out, stderr=out)
        try:
            run = self.watch(daemon, log, selector)
            daemon.send_signal(signal.SIGTERM)
            if daemon.wait(DEADLINE_SECONDS):
                raise ChildProcessError(f"winnowd ended: {log.read_text()[-3000:]}")
        finally:
            daemon.kill()
            daemon.wait()
        # There may not be room for the next one's otherwise.
        subprocess.run(["rm", "-rf", folder / "out"], check=True)
        say(f"{selector}: {run.consumed_per_s:,.0f} documents/s")
        return run

    def watch(self, daemon, log, selector):
        """Until everything is published: one window, whole."""
        deadline, address, began, consumed, spooled = time.monotonic() + DEADLINE_SECONDS, None, None, None, 0.0
        while True:
            time.sleep(0.1)
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise ChildProcessError(f"winnowd did not decide the window: {log.read_text()[-3000:]}")
            address = address or re.search(r"on http://(\S+)", log.read_text())
            if not address:
                continue
            text = urllib.request.urlopen(f"http://{address[1]}/metrics", timeout=600).read().decode()
            now, n = time.monotonic(), value(text, "winnowd_consumed_records_total")
            spooled = max(spooled, value(text, "winnowd_spool_bytes"))
            if n and not began:
                began = (now, n, cpu_seconds(daemon.pid))
            if n >= self.n and not consumed:
                consumed = now
            if value(text, "winnowd_catalog_documents") >= self.n:
                break
        closed = value(text, 'winnowd_windows_closed_total')
        if closed != 1 or value(text, r'winnowd_windows_closed_total\{reason="documents"\}') != 1:
            raise ValueError(f"{selector}: not one window of {self.n:,} documents: {log.read_text()[-3000:]}")
        since, before, cpu = began
        status = pathlib.Path(f"/proc/{daemon.pid}/status").read_text()
        peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024
        rate = lambda until: (self.n - before) / max(until - since, 0.1)
        cpu_us = (cpu_seconds(daemon.pid) - cpu) / (self.n - before) * 1e6
        return Run(selector, rate(consumed), rate(now), cpu_us, now - consumed, peak, spooled, self.budgets_mib[selector] * MIB)

    def report(self, runs):
        print(f"{self.n:,} documents of {self.n_bytes / self.n:,.0f} bytes, {self.n_bytes / 1e9:.1f} GB in one partition (lz4 by the "
              f"producer, {self.log_bytes() / 1e9:.1f} GB), one window, {self.fraction:.0%} selected, broker on the same machine.")
        rows = [[run.selector, f"{run.consumed_per_s:,.0f}", f"{run.decided_per_s:,.0f}", number(run.cpu_us), f"{run.deciding_s:.1f}",
                 f"{run.peak_bytes / MIB:,.0f}", f"{run.budget_bytes / MIB:,.0f}", f"{run.spool_bytes / 1e9:.2f}"] for run in runs]
        header = ["selector", "documents/s, consumed", "until published", "CPU µs a document", "s after the last document",
                  "peak resident MiB", "memory.budget MiB", "GB that waited"]
        table("One window", header, rows)


def cpu_seconds(pid):
    """Of all threads, ended ones too."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
