#!/usr/bin/env python3
"""The worker of a rendered pod, run as the kubelet would, as far as that goes without one.

    pod.py WINNOWD MODEL BOOTSTRAP HELM

Puts a root together as the Dockerfile does, mounts the volumes that the chart's StatefulSet names, makes all else read-only, and
runs the container's command with its variables as its user, on a topic of its own. It must become ready, publish, bear
`winnowd check --connect` beside itself as `kubectl exec` would run it, and end politely within its grace period. Needs root, PyYAML
and confluent-kafka.
"""
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import yaml
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATIENCE = 60
N_DOCUMENTS = 500
# Binds what is to be seen, closes the root, and becomes the worker. Arguments: root, user, mounts (from, to, ro or rw)…, --,
# command.
ENTER = r"""
set -eu
root=$1 user=$2; shift 2
mount --bind "$root" "$root"
while [ "$1" != -- ]; do
  mount --bind "$1" "$root$2"
  [ "$3" = rw ] || mount -o remount,bind,ro "$root$2"
  shift 3
done
shift
mount -o remount,bind,ro "$root"
exec chroot --userspec="$user" --groups= "$root" "$@"
"""


def wait_for(what, ready):
    deadline = time.monotonic() + PATIENCE
    while not (value := ready()):
        if time.monotonic() > deadline:
            sys.exit(f"pod: {what} did not happen within {PATIENCE} s")
        time.sleep(0.1)
    return value


def image(winnowd, root):
    """The last stage of the Dockerfile."""
    for folder in ("usr/local/bin", "etc/ssl/certs", "etc/winnowd", "model", "scratch", "var/lib/winnowd"):
        (root / folder).mkdir(parents=True)
    shutil.copy(winnowd, root / "usr/local/bin/winnowd")
    linked = subprocess.run(["ldd", winnowd], capture_output=True, text=True, check=True).stdout
    for library in (word for word in linked.split() if word.startswith("/")):
        place = root / library.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, place)
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", root / "etc/ssl/certs")
    (root / "etc/nsswitch.conf").write_text("hosts: files dns\n")


def rendered(helm, bootstrap, topic):
    values = {
        "config": {
            "kafka": {"bootstrap": bootstrap, "topics": [topic], "group": topic},
            "window": {"idle_timeout": "1s"},
            "shard": {"max_age": "1s"},
        }
    }
    command = [helm, "template", "winnowd", ROOT / "helm/winnowd", "--values", "-"]
    done = subprocess.run(command, input=json.dumps(values), capture_output=True, text=True, check=True)
    documents = [document for document in yaml.safe_load_all(done.stdout) if document]
    toml = next(d["data"]["winnowd.toml"] for d in documents if d["kind"] == "ConfigMap")
    return toml, next(d["spec"]["template"]["spec"] for d in documents if d["kind"] == "StatefulSet")


def volumes(folder, toml, model, user):
    """A folder for each volume of the pod; those to write to belong to its user, as fsGroup makes it."""
    places = {name: folder / name for name in ("config", "model", "scratch", "data")}
    for name, place in places.items():
        place.mkdir()
        if name in ("scratch", "data"):
            os.chown(place, user, user)
    (places["config"] / "winnowd.toml").write_text(toml)
    shutil.copy(model, places["model"] / "model.wnw")
    return places


def answer(port, path):
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).read().decode()
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


def produce(bootstrap, topic):
    producer = Producer({"bootstrap.servers": bootstrap})
    words = "the planner chooses an index scan when few rows of the table match its condition ".split()
    for n in range(N_DOCUMENTS):
        producer.produce(topic, json.dumps({"id": str(n), "text": " ".join([*words * 8, str(n)])}))
    producer.flush(30)


def main():
    winnowd, model, bootstrap, helm = sys.argv[1:]
    topic = f"pod-{time.time_ns()}"
    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic(topic, 2, 1)])[topic].result(30)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    toml, pod = rendered(helm, bootstrap, topic)
    container, user = pod["containers"][0], pod["securityContext"]["runAsUser"]
    # The port of a pod is its own; that of this machine is not.
    elsewhere = {"WINNOWD_HTTP__LISTEN": f"127.0.0.1:{port}", "WINNOWD_KAFKA__INSTANCE_ID": "winnowd-0"}
    environment = {v["name"]: v.get("value", "") for v in container["env"]} | elsewhere
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        folder.chmod(0o755)
        root = folder / "root"
        root.mkdir()
        image(winnowd, root)
        places = volumes(folder, toml, model, user)
        mounts = [
            argument
            for mount in container["volumeMounts"]
            for argument in (places[mount["name"]], mount["mountPath"], "ro" if mount.get("readOnly") else "rw")
        ]
        enter = ["unshare", "--mount", "sh", "-c", ENTER, "sh", root, f"{user}:{user}", *mounts, "--", "/usr/local/bin/winnowd"]
        with open(folder / "log", "wb") as log:
            worker = subprocess.Popen([*enter, *container["args"]], env=environment, stdout=log, stderr=log)
        try:

            def ready():
                if worker.poll() is not None:
                    sys.exit(f"pod: the worker ended with {worker.returncode}:\n{(folder / 'log').read_text()}")
                return answer(port, "/readyz")

            wait_for("readiness", ready)
            produce(bootstrap, topic)
            manifest = places["data"] / "selected/manifest.jsonl"
            wait_for("a publication", lambda: manifest.exists() and manifest.read_text())
            beside = [*enter, "check", "--config", "/etc/winnowd/winnowd.toml", "--connect"]
            checked = subprocess.run(beside, env=environment, capture_output=True, text=True, check=False)
            if checked.returncode != 0:
                sys.exit(f"pod: winnowd check --connect: {checked.stdout}{checked.stderr}")
            asked = time.monotonic()
            worker.send_signal(signal.SIGTERM)
            code = worker.wait(pod["terminationGracePeriodSeconds"])
            if code != 0 or "winnowd has stopped" not in (folder / "log").read_text():
                sys.exit(f"pod: exit code {code}:\n{(folder / 'log').read_text()}")
            took = 1000 * (time.monotonic() - asked)
            print(f"pod: as user {user} on a read-only root ready, published, and ended {took:.0f} ms after SIGTERM")
        finally:
            worker.kill()
            worker.wait()


main()
