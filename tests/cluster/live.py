#!/usr/bin/env python3
"""Alerts and dashboards against a real Prometheus that scrapes real runs, with faults.

    live.py WINNOWD PROMETHEUS BOOTSTRAP POSTGRES [--out FOLDER]

Starts pipelines beside one another, each a job of its own on topics of its own, and one Prometheus with the chart's alerts. The first has
two workers on an empty database (POSTGRES, a URL), a model with two targets, and a trainer that reads its shards, reports losses and
asks for weights, over HTTP and over topics. While all is well no alert may fire in any. Then each has its fault (faults.py), all at
the same time: every alert of the chart must fire in the pipeline whose fault it is for, and no other may, but for what follows from
that fault. Every metric must be asked for by a dashboard, an alert or the autoscaler, and every query of every panel must have
returned numbers for the first pipeline; --out draws each dashboard. Times of the rules are short (stage.py), nothing else is.
"""
import argparse
import contextlib
import dataclasses
import json
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse

from confluent_kafka.admin import AdminClient, NewTopic
from faults import FAULTS, judge, make_all, with_losses
from feeds import DEADLINE_SECONDS, RANKS, SAMPLE, Load, Stream, Trainer, documents
from stage import CHART, Pipeline, Prometheus, Proxy, Worker, get, mount_small_disk, unmount, wait_for

DRAWN = "winnowd"
PARTITIONS = 6
TARGETS = {"postgresql": b'"postgresql-doc"', "python": b'"python-doc"'}
# Of all documents a second; the others' pipelines have fewer. A machine that cannot do so much gets less.
RATE = 1000
RATE_OF_OTHERS = 60
LEAST_RATE = 30
EASED_EVERY = 15
# Longer than a day of the rules on selections, which look back.
HEALTHY_SECONDS = 45
EVERY = {
    "kafka.session_timeout": "6s",
    "selection.length_normalise": True,
    "selection.temperature": 0.3,
    "selection.coverage_sample": 4,
    "window.max_documents": 200,
    "window.idle_timeout": "2s",
    "shard.max_age": "2s",
    "memory.budget": "64MiB",
    "documents.max_bytes": "8MiB",
}
OF_DRAWN = {
    "model.raw": "adaptive",
    "documents.filter": "length(text) % 50 <> 7",
    "documents.columns.words_a_line": "length(text) / (length(text) % 50)",
    "selection.mixing": "odm",
    "dead_letters.max_ratio": 1,
    "losses.deadline": f"{DEADLINE_SECONDS}s",
    "loss_weight.burn_in_steps": 0,
    "window.max_documents": 500,
    "memory.budget": "128MiB",
}
# What only such a selector tells, and what waits on disk for it, is asked of this one.
SENSITIVE = "brokers"
OF_SENSITIVE = {"selection.selector": "sensitivity", "selection.centres": 16, "selection.centres_from": "stream", "memory.budget": "128MiB"}
OF_SENSITIVITY = re.compile("winnowd_spool|winnowd_clusters|winnowd_window_(centres|weight_ratio)")
# What only strata, their edges of the stream and shares of sources tell. The documents have losses.
COVERED = "catalog"
OF_COVERED = {
    "selection.selector": "coverage",
    "selection.importance": "loss",
    "selection.cutoff": 0.05,
    "selection.strata": 4,
    "selection.edges_from": "stream",
    'selection.sources."postgresql-doc"': 0.3,
}
OF_COVERAGE = re.compile("winnowd_(window_strata|cut_off|shortfall|source_share|edges)")
# Words between blanks; none is known, and each is one token.
TOKENIZER = {
    "version": "1.0",
    "added_tokens": [],
    "pre_tokenizer": {"type": "Whitespace"},
    "model": {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"},
}
# job → what its configuration has of its own.
OTHERS = {
    "slow": {"kafka.on_lost_offset": "skip"},
    "twice": {},
    "moved": {},
    "drowned": {
        "documents.loss_field": "loss",
        "selection.loss_strategy": "kl_dro",
        "selection.loss_high": 4.0,
        "window.max_documents": 1000,
    },
    "large": {"selection.fraction": 0.3, "window.max_documents": 1500, "losses.max_bytes": "64MiB", "losses.max_samples": 16_000_000},
    "catalog": OF_COVERED,
    "disk": {},
    "brokers": OF_SENSITIVE,
    # The group's memory of a member outlives the run, and nobody mends what is to be seen.
    "orphan": {
        "kafka.session_timeout": "10m",
        "kafka.max_poll_interval": "10m",
        "kafka.ownership_interval": "1s",
        "kafka.ownership_grace": "1d",
    },
}
# Of these the second worker belongs to the fault. The first of "orphan" ends where it has drained what is taken from it.
OF_TWO = {"twice": {}, "orphan": {"CRASH_POINT": "revoke.drained:1"}}
PARTITIONS_OF_ORPHAN = 4
SMALL_DISK = "16m"


@dataclasses.dataclass
class Scene:
    """What faults are made of."""

    bootstrap: str
    admin: AdminClient
    prometheus: Prometheus
    streams: dict
    trainer: Trainer
    postgres_proxy: Proxy


def metric_names(text):
    return {re.sub("_(bucket|sum|count)$", "", name) for name in re.findall(r"\bwinnowd_\w+", text)}


def same_names(workers):
    """Names that alerts, dashboards and the autoscaler ask for, against those that there are."""
    there = set().union(*(metric_names(get(f"http://127.0.0.1:{worker.port}/metrics")) for worker in workers))
    files = [CHART / "files/alerts.yaml", CHART / "templates/autoscaling.yaml", *CHART.glob("files/dashboards/*.json")]
    asked = {name for file in files for name in metric_names(file.read_text())}
    if asked - there:
        sys.exit(f"live: no such metric: {sorted(asked - there)}")
    if there - asked:
        sys.exit(f"live: nobody asks for these metrics: {sorted(there - asked)}")
    print(f"  all {len(there)} metrics are asked for")


def answers(prometheus, job, began):
    """Every query of every panel for the pipeline that is drawn, over the whole run: dashboard → panels with their series."""
    seen, empty = {}, []
    for path in sorted(CHART.glob("files/dashboards/*.json")):
        dashboard = json.loads(path.read_text())
        for panel in panels_of(dashboard):
            if not panel["description"] or "Good:" not in panel["description"] or not panel["fieldConfig"]["defaults"]["unit"]:
                sys.exit(f"live: {path.name}, {panel['title']}: no unit, or no word of what is good")
            panel["series"] = []
            for target in panel["targets"]:
                of_others = {SENSITIVE: OF_SENSITIVITY, COVERED: OF_COVERAGE}
                asked = next((other for other, names in of_others.items() if names.search(target["expr"])), job)
                expression = re.sub(r"\$(namespace|pod)\b", ".*", target["expr"]).replace("$job", asked).replace("$__rate_interval", "15s")
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


def settings(keys):
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())


class Setting:
    """The pipelines before they have their faults."""

    def __init__(self, winnowd, folder, bootstrap, postgres):
        self.winnowd, self.folder, self.bootstrap, self.postgres = winnowd, folder, bootstrap, postgres
        self.prefix = f"live-{time.time_ns() % 1_000_000_000}"
        self.admin = AdminClient({"bootstrap.servers": bootstrap})
        self.records = documents()
        server = urllib.parse.urlsplit(postgres)
        self.proxy = Proxy((server.hostname, server.port or 5432))
        self.behind_proxy = postgres.replace(f"{server.hostname}:{server.port}", f"127.0.0.1:{self.proxy.port}")
        if self.behind_proxy == postgres:
            sys.exit(f"live: {postgres} names no port")

    def fit(self):
        targets = []
        for name, source in TARGETS.items():
            (self.folder / f"{name}.jsonl").write_bytes(b"".join(record + b"\n" for record in self.records if source in record))
            targets.append(f"{name}={self.folder}/{name}.jsonl")
        first = self.folder / "postgresql.jsonl"
        for model, target in (("two", targets), ("model", [first])):
            command = [self.winnowd, "fit", "--target", *target, "--raw", SAMPLE, "--out", self.folder / f"{model}.wnw"]
            subprocess.run(command, check=True, capture_output=True)
        (self.folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))

    def topics(self, topics):
        for future in self.admin.create_topics([NewTopic(name, n, 1) for name, n in topics.items()]).values():
            future.result(60)

    def pipeline(self, job, n_workers, own, environment):
        folder, topic = self.folder / job, f"{self.prefix}-{job}"
        folder.mkdir()
        keys = {
            "pipeline.name": job,
            "kafka.bootstrap": self.bootstrap,
            "kafka.topics": [topic],
            "kafka.group": topic,
            "model.path": f"{self.folder}/model.wnw",
            "sink.url": f"{folder}/out",
            "catalog.url": f"sqlite://{folder}/catalog.db",
        }
        config = settings(keys | EVERY | own)
        workers = [Worker(self.winnowd, folder, f"{job}-{n}", config, environment if n == 0 else {}) for n in range(n_workers)]
        return Pipeline(job, folder, topic, config, workers)

    def drawn(self):
        topic = f"{self.prefix}-{DRAWN}"
        self.topics({topic: PARTITIONS, f"{topic}-dead": 1, f"{topic}-losses": RANKS, f"{topic}-ranks": 2, f"{topic}-weights": 1})
        own = {
            "model.path": f"{self.folder}/two.wnw",
            "catalog.url": self.postgres,
            "dead_letters.topic": f"{topic}-dead",
            "feedback.topic": f"{topic}-losses",
            "losses.topic": f"{topic}-ranks",
            "losses.weights_topic": f"{topic}-weights",
            "documents.tokenizer.path": f"{self.folder}/tokenizer.json",
        }
        return self.pipeline(DRAWN, 2, OF_DRAWN | own, {})

    def other(self, job, last):
        """`last`: what is done at the end. None where this machine does not let it have its fault."""
        topic, folder = f"{self.prefix}-{job}", self.folder / job
        self.topics({topic: PARTITIONS_OF_ORPHAN if job == "orphan" else 1})
        own = {}
        if job in OF_TWO:
            own["catalog.url"] = self.postgres
        elif job == "catalog":
            own["catalog.url"] = self.behind_proxy
        elif job == "slow":
            own['kafka.properties."client.id"'] = topic
        elif job == "disk":
            own["sink.scratch_dir"] = f"{folder}/scratch"
        pipeline = self.pipeline(job, 2 if job in OF_TWO else 1, OTHERS[job] | own, OF_TWO.get(job))
        if job == "disk":
            if not mount_small_disk(folder / "scratch", SMALL_DISK):
                print("live: left out: a full disk, as only root may mount a small one")
                return None
            last.callback(unmount, folder / "scratch")
        return pipeline


class Ease:
    """Whether nothing fires; who falls behind because the machine is slow gets half as much from now on."""

    def __init__(self, prometheus, streams):
        self.prometheus, self.streams, self.eased = prometheus, streams, {}

    def __call__(self):
        firing = self.prometheus.firing()
        for job, alert in firing:
            if alert == "WinnowdConsumedLagGrows" and time.monotonic() - self.eased.get(job, 0) > EASED_EVERY:
                self.eased[job] = time.monotonic()
                self.streams[job].rate = max(LEAST_RATE, self.streams[job].rate / 2)
                print(f"  {job}: falls behind on this machine: {self.streams[job].rate:.0f} documents/s from now on", flush=True)
        return not firing


def be_healthy(prometheus, pipelines, streams):
    """All of them publish, and then none has an alert for a day and more, as days are here."""
    for pipeline in pipelines:
        running = [worker for worker in pipeline.workers if worker.process is not None]
        query = f'count(winnowd_published_shards_total{{job="{pipeline.job}"}} > 0)'
        have_published = lambda: all(worker.is_running() for worker in running) and prometheus.value(query) == len(running)
        wait_for(f"the first publications of {pipeline.job}", have_published)
    # Until then nothing was published although records waited.
    wait_for("an end of all alerts", Ease(prometheus, streams), instead=lambda: sorted(prometheus.firing()))
    began = time.time()
    wait_for("a day", lambda: time.time() - began > HEALTHY_SECONDS)
    if alerts := prometheus.fired_since(began):
        sys.exit(f"live: all is well, and yet these fire: {sorted(alerts)}")
    print(f"  no alert of {len(pipelines)} pipelines within {HEALTHY_SECONDS} s of health", flush=True)


def wait_for_loops(prometheus):
    for loop, metric in (
        ("losses that count", 'winnowd_feedback_losses_total{outcome="counted"}'),
        ("weights over HTTP", 'winnowd_weighed_batches_total{by="http"}'),
        ("weights over topics", 'winnowd_weighed_batches_total{by="topic", why="complete"}'),
        ("steps without a rank", 'winnowd_weighed_batches_total{by="topic", why="deadline"}'),
        ("late reports", 'winnowd_loss_reports_total{outcome="late"}'),
        ("quotas", "winnowd_feedback_quota_ratio"),
    ):
        wait_for(loop, lambda metric=metric: prometheus.ask("query", query=f"{metric} > 0"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("winnowd", "prometheus", "bootstrap", "postgres"):
        parser.add_argument(name)
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    began = time.time()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as last:
        folder = pathlib.Path(folder)
        setting = Setting(arguments.winnowd, folder, arguments.bootstrap, arguments.postgres)
        setting.fit()
        drawn = setting.drawn()
        pipelines = [drawn, *filter(None, (setting.other(job, last) for job in OTHERS))]
        for pipeline in pipelines:
            for worker in pipeline.workers[: 1 if pipeline.job in OF_TWO else None]:
                worker.start()
        for pipeline in pipelines:
            for worker in pipeline.workers:
                last.callback(worker.destroy)
        streams = {p.job: Stream(p.topic, 1, RATE_OF_OTHERS, setting.records) for p in pipelines}
        streams[DRAWN] = Stream(drawn.topic, PARTITIONS, RATE, setting.records)
        streams["orphan"].partitions = PARTITIONS_OF_ORPHAN
        # Of larger windows.
        streams["drowned"].rate = streams["large"].rate = 4 * RATE_OF_OTHERS
        streams["drowned"].records = streams[COVERED].records = list(with_losses(setting.records))
        load = Load(arguments.bootstrap, list(streams.values()))
        load.start()
        trainer = Trainer(arguments.bootstrap, drawn.topic, drawn.out / "manifest.jsonl", drawn.workers)
        trainer.start()
        prometheus = Prometheus(arguments.prometheus, folder, pipelines)
        last.callback(prometheus.destroy)
        if untold := prometheus.alerts - set().union(*(fault.alerts for fault in FAULTS.values())):
            sys.exit(f"live: these alerts have no fault: {sorted(untold)}")

        be_healthy(prometheus, pipelines, streams)
        wait_for_loops(prometheus)
        same_names([drawn.workers[0], *(p.workers[0] for p in pipelines if p.job in (SENSITIVE, COVERED))])
        scene = Scene(arguments.bootstrap, setting.admin, prometheus, streams, trainer, setting.proxy)
        faults_began = time.time()
        make_all(scene, pipelines)
        judge(prometheus.fired_since(faults_began), pipelines)
        for thread in (trainer, load):
            thread.stopped.set()
            thread.join(60)
        seen = answers(prometheus, DRAWN, began)
        panels = [panel for dashboard in seen.values() for panel in panels_of(dashboard)]
        for worker in drawn.workers:
            worker.end(signal.SIGTERM)
    if arguments.out:
        from draw import draw

        arguments.out.mkdir(parents=True, exist_ok=True)
        for name, dashboard in seen.items():
            draw(dashboard, arguments.out / f"{name}.png")
    n_alerts = len(prometheus.alerts)
    print(f"live: {n_alerts} alerts fire in their faults; {sum(len(panel['targets']) for panel in panels)} queries of {len(panels)} panels have data")


main()
