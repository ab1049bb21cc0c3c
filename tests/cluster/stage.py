"""What the live run is made of: workers that can be killed, a Prometheus with the chart's alerts, and ways to wait for what they show."""
import contextlib
import ctypes
import json
import os
import pathlib
import random
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "helm/winnowd"
# Far beyond what anything here takes: it ends what would never happen, and decides nothing.
PATIENCE = 180
# What a time of a rule is here. A day and its hours are short where windows are compared with earlier ones.
SHORT = {"for": "6s", "5m": "20s", "30m": "60s", "1h": "60s", "1d": "120s"}
SHORTER = SHORT | {"1h": "20s", "1d": "40s"}
# "Ten minutes' work" of the rules on lag, in seconds.
WORK, SHORT_WORK = "600 *", "20 *"
# Set when one of the threads has failed: the others need not go on.
given_up = threading.Event()


def wait_for(what, ready, seconds=PATIENCE, instead=lambda: ""):
    deadline = time.monotonic() + seconds
    while not (value := ready()):
        if given_up.is_set() or time.monotonic() > deadline:
            sys.exit(f"live: {what} did not happen within {seconds} s {instead()}".rstrip())
        time.sleep(0.3)
    return value


taken_ports = set()


def free_port():
    """Below the ports that the kernel gives to whoever asks for any: it stays free until it is wanted, and between two starts."""
    while True:
        port = random.randrange(10_000, 20_000)
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            if port not in taken_ports:
                taken_ports.add(port)
                return port


def get(url):
    with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
        return urllib.request.urlopen(url, timeout=30).read().decode()
    return None


class Worker:
    """One that can be killed and comes back at the same address, as a pod does."""

    def __init__(self, winnowd, folder, name, config, environment=None):
        self.name, self.port, self.log = name, free_port(), folder / f"{name}.log"
        self.file, self.process = folder / f"{name}.toml", None
        # Variables of tests are no keys of the configuration.
        outside = {key: value for key, value in os.environ.items() if not key.startswith("WINNOWD_")}
        self.command, self.environment = [winnowd, "run", "-c", self.file], outside | (environment or {})
        self.configure(config)

    def configure(self, config):
        own = f'kafka.instance_id = "{self.name}"\nhttp.listen = "127.0.0.1:{self.port}"\n'
        self.file.write_text(config + own)

    def start(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=self.environment)

    def is_running(self):
        if self.process.poll() is not None:
            sys.exit(f"live: {self.name} ended:\n{self.log.read_text()[-3000:]}")
        return True

    def is_ready(self):
        return self.is_running() and get(f"http://127.0.0.1:{self.port}/readyz")

    def metric(self, name):
        """The sum of its series; None while it does not answer."""
        lines = (get(f"http://127.0.0.1:{self.port}/metrics") or "").splitlines()
        found = [float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{name}[ {{]", line)]
        return sum(found) if found else None

    def end(self, how):
        self.process.send_signal(how)
        self.process.wait(PATIENCE)

    def destroy(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()


class Pipeline:
    """Workers of one job, with a topic, a catalog and a store of their own."""

    def __init__(self, job, folder, topic, config, workers):
        self.job, self.folder, self.topic, self.config, self.workers = job, folder, topic, config, workers
        self.out = folder / "out"


class Prometheus:
    """Alerts of the chart as they are, with short times."""

    def __init__(self, program, folder, pipelines):
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        rules = yaml.safe_load((CHART / "files/alerts.yaml").read_text())
        self.alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
        # JSON is YAML.
        (folder / "alerts.json").write_text(json.dumps(quick(rules)))
        labels = lambda job, worker: {"namespace": "curation", "job": job, "pod": worker.name}
        targets = [
            {"targets": [f"127.0.0.1:{worker.port}"], "labels": labels(pipeline.job, worker)}
            for pipeline in pipelines
            for worker in pipeline.workers
        ]
        config = {
            "global": {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "1s"},
            "rule_files": [str(folder / "alerts.json")],
            "scrape_configs": [{"job_name": "winnowd", "static_configs": targets}],
        }
        (folder / "prometheus.json").write_text(json.dumps(config))
        command = [program, f"--config.file={folder}/prometheus.json", f"--storage.tsdb.path={folder}/prometheus"]
        with open(folder / "prometheus.log", "wb") as log:
            self.process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
        wait_for("the start of Prometheus", lambda: get(f"{self.address}/-/ready"))

    def destroy(self):
        self.process.kill()
        self.process.wait()

    def ask(self, path, **parameters):
        answer = get(f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        if answer is None:
            sys.exit(f"live: Prometheus refuses {parameters}")
        return json.loads(answer)["data"]["result"]

    def value(self, query):
        found = self.ask("query", query=query)
        return float(found[0]["value"][1]) if found else None

    def firing(self, job=".*"):
        """(job, alert) of each alert that fires."""
        found = self.ask("query", query=f'ALERTS{{alertstate="firing", job=~"{job}"}}')
        return {(s["metric"]["job"], s["metric"]["alertname"]) for s in found}

    def fired_since(self, began):
        """The same of each that has fired at some time since then."""
        past = max(1, round(time.time() - began))
        found = self.ask("query", query=f'count by (job, alertname) (last_over_time(ALERTS{{alertstate="firing"}}[{past}s]))')
        return {(s["metric"]["job"], s["metric"]["alertname"]) for s in found}

    def wait_firing(self, pipeline, *alerts, began=None):
        began = began or time.monotonic()
        for alert in alerts:
            wait_for(f"the alert {alert} of {pipeline.job}", lambda: (pipeline.job, alert) in self.firing(pipeline.job))
            print(f"  {pipeline.job}: {alert} fires after {time.monotonic() - began:.0f} s", flush=True)

    def wait_silent(self, pipeline, *alerts):
        for alert in alerts:
            wait_for(f"the end of the alert {alert} of {pipeline.job}", lambda: (pipeline.job, alert) not in self.firing(pipeline.job))


def quick(rules):
    """The same rules with short times. Each time must have a short one."""
    for group in rules["groups"]:
        times = SHORTER if group["name"] == "winnowd-selection" else SHORT
        for rule in group["rules"]:
            shorten = lambda found: found[1] + times[found[2]]
            rule["expr"] = re.sub(r"(\[|offset )(\w+)", shorten, rule["expr"]).replace(WORK, SHORT_WORK)
            if "for" in rule:
                rule["for"] = times["for"]
    return rules


class Proxy(threading.Thread):
    """A way to a server that can be cut and mended."""

    def __init__(self, to):
        super().__init__(daemon=True)
        self.to, self.is_cut, self.connections = to, threading.Event(), []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.start()

    def run(self):
        while True:
            here, _ = self.listener.accept()
            if self.is_cut.is_set():
                here.close()
                continue
            there = socket.create_connection(self.to)
            self.connections += [here, there]
            for one, other in ((here, there), (there, here)):
                threading.Thread(target=self.carry, args=(one, other), daemon=True).start()

    @staticmethod
    def carry(one, other):
        with contextlib.suppress(OSError):
            while piece := one.recv(1 << 16):
                other.sendall(piece)
        for side in (one, other):
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def cut(self):
        self.is_cut.set()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.connections.clear()
        yield
        self.is_cut.clear()


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


def mount_small_disk(folder, size):
    """Whether it could be: only root may."""
    folder.mkdir()
    return subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "winnowd-live", folder], capture_output=True).returncode == 0


def unmount(folder):
    subprocess.run(["umount", "-l", folder], capture_output=True, check=False)
