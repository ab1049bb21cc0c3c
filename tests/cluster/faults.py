"""The faults of the live run: each made for real, in a pipeline of its own, all at the same time; each must be told by its alerts."""
import concurrent.futures
import contextlib
import dataclasses
import json
import signal
import sys
import threading
import time
import urllib.error

from confluent_kafka import TopicPartition
from confluent_kafka.admin import NewTopic, OffsetSpec
from feeds import ask_for_weights, limit_consumers
from stage import free_port, given_up, in_the_way, wait_for

# What a worker that ends or is started anew may bring with it for some seconds, the longer the slower the machine is.
WHILE_AWAY = {"WinnowdDown", "WinnowdNoPartitions", "WinnowdNothingPublished", "WinnowdPartitionWithoutOwner"}
# Below what is produced, whatever the machine can do.
SLOW_BYTES_PER_SECOND = 20_000
# Of one request for weights. What it takes in memory is many times that.
SAMPLES = 3_000_000


@dataclasses.dataclass
class Fault:
    """`make`: what is done. `alerts`: those that must fire. `may`: those that can follow from it."""

    make: object
    alerts: set
    may: set = dataclasses.field(default_factory=set)


def bad_input_then_store_then_kill(scene, pipeline):
    """The one that is drawn. One after another; each is told of, and told of no more when it is over."""
    prometheus, load, trainer = scene.prometheus, scene.streams[pipeline.job], scene.trainer
    dead = f"{pipeline.topic}-dead"
    scene.admin.delete_topics([dead])[dead].result(60)
    load.bad_share, trainer.strangers = 0.2, 5
    prometheus.wait_firing(pipeline, "WinnowdDeadLetters", "WinnowdFeedbackLost", "WinnowdDeadLettersNotForwarded")
    if found := prometheus.ask("query", query="winnowd_feedback_bad_reports_total > 0"):
        sys.exit(f"live: reports that the trainer means well cannot be read: {found}")
    load.bad_share, trainer.strangers = 0, 0
    scene.admin.create_topics([NewTopic(dead, 1, 1)])[dead].result(60)
    for place, alert in (("shards", "WinnowdPublishStalled"), ("manifest.jsonl", "WinnowdManifestBehind")):
        with in_the_way(pipeline.out / place):
            prometheus.wait_firing(pipeline, alert)
        prometheus.wait_silent(pipeline, alert)
    for worker in pipeline.workers:
        worker.end(signal.SIGKILL)
    prometheus.wait_firing(pipeline, "WinnowdDown")
    for worker in pipeline.workers:
        worker.start()
    for worker in pipeline.workers:
        wait_for(f"{worker.name} is back", worker.is_ready)
    prometheus.wait_silent(pipeline, "WinnowdDown")
    again = f'count(winnowd_published_shards_total{{job="{pipeline.job}"}} > 2)'
    wait_for("publications of all workers", lambda: prometheus.value(again) == len(pipeline.workers))


def slow_network_then_retention(scene, pipeline):
    """The broker gives less than comes, and in the end deletes what waits."""
    stream = scene.streams[pipeline.job]
    limit_consumers(scene.bootstrap, pipeline.topic, SLOW_BYTES_PER_SECOND)
    stream.rate *= 2
    scene.prometheus.wait_firing(pipeline, "WinnowdConsumedLagGrows")
    ends = scene.admin.list_offsets({TopicPartition(pipeline.topic, n): OffsetSpec.latest() for n in range(stream.partitions)})
    gone = [TopicPartition(at.topic, at.partition, end.result(60).offset) for at, end in ends.items()]
    for deleted in scene.admin.delete_records(gone).values():
        deleted.result(60)
    scene.prometheus.wait_firing(pipeline, "WinnowdOffsetsSkipped")
    limit_consumers(scene.bootstrap, pipeline.topic, None)
    scene.prometheus.wait_silent(pipeline, "WinnowdConsumedLagGrows")


def two_deployments_of_one_pipeline(scene, pipeline):
    """Two groups, each of which gives the partitions to its own worker: they share a catalog, and each takes over what the other had."""
    _, second = pipeline.workers
    second.configure(pipeline.config.replace(f'kafka.group = "{pipeline.topic}"', f'kafka.group = "{pipeline.topic}-second"'))
    second.start()
    scene.prometheus.wait_firing(pipeline, "WinnowdFenced", "WinnowdSessionRestarts")
    second.end(signal.SIGTERM)


def a_new_crawl(scene, pipeline):
    """Nothing but one kind of document, which the model takes for rare."""
    stream = scene.streams[pipeline.job]
    stream.records = [record for record in stream.records if b'"postgresql-doc"' in record]
    scene.prometheus.wait_firing(pipeline, "WinnowdWeightsMoved", "WinnowdRawDrift")


def a_loss_that_drowns_the_weights(scene, pipeline):
    """A new configuration with a coefficient that somebody took for another unit: the documents of which a proxy model has the highest
    loss are selected, whatever the target is. It knows what is wanted well."""
    (worker,) = pipeline.workers
    worker.end(signal.SIGTERM)
    worker.configure(pipeline.config + "selection.loss_coefficient = 1000000.0\n")
    worker.start()
    scene.prometheus.wait_firing(pipeline, "WinnowdSelectionCollapsed", "WinnowdSelectionNoBetterThanRandom")


def with_losses(records):
    """What is wanted is easy; of the others each has a loss of its own."""
    for n, record in enumerate(records):
        with contextlib.suppress(ValueError):
            document = json.loads(record)
            yield json.dumps(document | {"loss": 0.5 if document["source"] == "postgresql-doc" else 2 + n / len(records)}).encode()


def with_numbers(records):
    """Each with one of its own, which says nothing of its text."""
    for n, record in enumerate(records):
        with contextlib.suppress(ValueError):
            yield json.dumps(json.loads(record) | {"hard": n * 37 % 101}).encode()


def too_large(scene, pipeline):
    """Documents of which the windows do not fit into the budget; then trainers whose batches are as large as requests may be."""
    (worker,) = pipeline.workers
    stream = scene.streams[pipeline.job]
    small = stream.records
    words = b" ".join(small)[:5_000_000].decode(errors="replace")
    stream.rate /= 5
    stream.records = [json.dumps({"text": words[n * 100_000 : (n + 1) * 100_000]}).encode() for n in range(50)]
    scene.prometheus.wait_firing(pipeline, "WinnowdWindowsClosedEarly")
    stream.records = small
    columns = [f'"{name}": [{",".join([value] * SAMPLES)}]' for name, value in (("loss_sum", "1"), ("tokens", "1"), ("doc_ids", '"a"'))]
    is_told = threading.Event()

    def train(run):
        step = 0
        while not is_told.is_set() and not given_up.is_set():
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                body = f'{{"run_id": "{run}", "step": {step}, {", ".join(columns)}}}'
                ask_for_weights(worker, body.encode(), seconds=600)
            step += 1

    trainers = [threading.Thread(target=train, args=(run,), daemon=True) for run in range(3)]
    for trainer in trainers:
        trainer.start()
    scene.prometheus.wait_firing(pipeline, "WinnowdMemoryBeyondBudget")
    is_told.set()


def catalog_away(scene, pipeline):
    alerts = "WinnowdPublishStalled", "WinnowdNotReady", "WinnowdNothingPublished"
    with scene.postgres_proxy.cut():
        scene.prometheus.wait_firing(pipeline, *alerts)
    scene.prometheus.wait_silent(pipeline, *alerts)


def disk_full(scene, pipeline):
    filler = pipeline.folder / "scratch/filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    alerts = "WinnowdPublishStalled", "WinnowdNotReady"
    scene.prometheus.wait_firing(pipeline, *alerts)
    filler.unlink()
    scene.prometheus.wait_silent(pipeline, *alerts)


def brokers_away_then_restarts(scene, pipeline):
    """A new configuration with an address where nobody answers; then somebody loses patience with the worker, again and again."""
    (worker,) = pipeline.workers
    worker.end(signal.SIGTERM)
    worker.configure(pipeline.config.replace(scene.bootstrap, f"127.0.0.1:{free_port()}"))
    worker.start()
    scene.prometheus.wait_firing(pipeline, "WinnowdNoPartitions", "WinnowdNotReady")
    began = time.monotonic()
    start_time = f'process_start_time_seconds{{job="{pipeline.job}"}}'
    for _ in range(20):
        if (pipeline.job, "WinnowdRestarts") in scene.prometheus.firing(pipeline.job):
            break
        seen = wait_for("a start that is seen", lambda: scene.prometheus.value(start_time))
        worker.end(signal.SIGKILL)
        worker.start()
        is_new = lambda seen=seen: scene.prometheus.value(start_time) not in (None, seen)
        wait_for("the next start that is seen", is_new)
    scene.prometheus.wait_firing(pipeline, "WinnowdRestarts", began=began)


def ends_between_two_rebalances(scene, pipeline):
    """Partitions are taken from the first worker and not yet given to the second when both end. They come back under their names: the
    group gives each what it had."""
    first, second = pipeline.workers
    second.start()
    wait_for("the end of the first worker, which has given half of its partitions away", lambda: first.process.poll() is not None)
    joined = lambda: second.is_ready() and second.metric("winnowd_assigned_partitions") == 0
    wait_for("the second worker, which has got nothing yet, is a member", joined)
    second.end(signal.SIGKILL)
    del first.environment["CRASH_POINT"]
    for worker in pipeline.workers:
        worker.start()
    scene.prometheus.wait_firing(pipeline, "WinnowdPartitionWithoutOwner")


# job → its fault.
FAULTS = {
    "winnowd": Fault(
        bad_input_then_store_then_kill,
        {
            "WinnowdDeadLetters",
            "WinnowdFeedbackLost",
            "WinnowdDeadLettersNotForwarded",
            "WinnowdPublishStalled",
            "WinnowdManifestBehind",
            "WinnowdDown",
        },
        WHILE_AWAY | {"WinnowdNotReady", "WinnowdConsumedLagGrows"},
    ),
    "slow": Fault(slow_network_then_retention, {"WinnowdConsumedLagGrows", "WinnowdOffsetsSkipped"}, {"WinnowdNothingPublished", "WinnowdNotReady"}),
    "twice": Fault(two_deployments_of_one_pipeline, {"WinnowdFenced", "WinnowdSessionRestarts"}, WHILE_AWAY),
    # Where all documents are of the target, none are nearer to it than others.
    "moved": Fault(a_new_crawl, {"WinnowdWeightsMoved", "WinnowdRawDrift"}, {"WinnowdSelectionNoBetterThanRandom"}),
    "drowned": Fault(
        a_loss_that_drowns_the_weights, {"WinnowdSelectionCollapsed", "WinnowdSelectionNoBetterThanRandom"}, WHILE_AWAY | {"WinnowdWeightsMoved"}
    ),
    "large": Fault(
        too_large,
        {"WinnowdWindowsClosedEarly", "WinnowdMemoryBeyondBudget"},
        {"WinnowdConsumedLagGrows", "WinnowdNothingPublished", "WinnowdWeightsMoved", "WinnowdRawDrift", "WinnowdSelectionCollapsed"},
    ),
    "catalog": Fault(
        catalog_away, {"WinnowdPublishStalled", "WinnowdNotReady", "WinnowdNothingPublished"}, {"WinnowdConsumedLagGrows", "WinnowdNoPartitions"}
    ),
    "disk": Fault(disk_full, {"WinnowdPublishStalled", "WinnowdNotReady"}, {"WinnowdNothingPublished", "WinnowdConsumedLagGrows"}),
    "brokers": Fault(brokers_away_then_restarts, {"WinnowdNoPartitions", "WinnowdNotReady", "WinnowdRestarts"}, WHILE_AWAY),
    "orphan": Fault(ends_between_two_rebalances, {"WinnowdPartitionWithoutOwner"}, WHILE_AWAY | {"WinnowdConsumedLagGrows"}),
}


def make_all(scene, pipelines):
    """Side by side; the first that fails ends the others."""
    with concurrent.futures.ThreadPoolExecutor(len(pipelines)) as threads:
        made = [threads.submit(FAULTS[pipeline.job].make, scene, pipeline) for pipeline in pipelines]
        for future in concurrent.futures.as_completed(made):
            if future.exception():
                given_up.set()
                raise future.exception()


def judge(fired, pipelines):
    """What has fired since the faults began, against what may have: a fault is told by its alerts, and by no others."""
    for pipeline in pipelines:
        fault = FAULTS[pipeline.job]
        of_job = {alert for job, alert in fired if job == pipeline.job}
        if missing := fault.alerts - of_job:
            sys.exit(f"live: {pipeline.job}: these did not fire: {sorted(missing)}")
        if strange := of_job - fault.alerts - fault.may:
            sys.exit(f"live: {pipeline.job}: these fire, and have nothing to do with its fault: {sorted(strange)}")
