#!/usr/bin/env python3
"""What the chart makes of its values: valid for each supported Kubernetes, read by the daemon, refused where it would not work.

    chart.py --winnowd FILE --model FILE --npm FOLDER --helm FILE [--helm FILE …]

Renders the chart with every file of values, on each Helm; all must agree. Needs PyYAML, kubernetes-validate, and in FOLDER the npm
packages that tests/cluster/run names. Prints what it has seen, and ends with the first thing that is wrong.
"""
import argparse
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import tomllib

import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "helm/winnowd"
# What Chart.yaml promises, and the newest that schemas are to be had of.
VERSIONS = ["1.25.0", "1.37.0"]
CASES = {
    "default": [],
    "laptop": ["-f", CHART / "values/laptop.yaml"],
    "sqlite": ["-f", CHART / "values/sqlite.yaml"],
    "fleet": ["-f", CHART / "values/fleet.yaml"],
    "everything": ["-f", ROOT / "tests/cluster/everything.yaml"],
}
POSTGRES = ["config.catalog.url=postgres://winnowd@postgres/winnowd", "config.sink.url=s3://bucket/prefix"]
# Values, each with a word of the reason why they are refused.
REFUSED = [
    (["replica=2"], "replica"),
    (["image.tagg=1"], "tagg"),
    (["monitoring.rules.enable=true"], "enable"),
    (["replicas=two"], "replicas"),
    (["replicas=2"], "SQLite is for one worker, 2 are asked for"),
    (["autoscaling.by=keda"], "SQLite is for one worker"),
    (["replicas=3", POSTGRES[0]], "a folder of its own"),
    (["replicas=2", *POSTGRES, "config.kafka.bootstrap=embedded"], "a cluster of its own"),
    (["config.kafka.instance_id=x"], "config.kafka.instance_id is set by the chart itself"),
    (["config.http.listen=0.0.0.0:80"], "config.http.listen is set by the chart itself"),
    (["config.kafka.sasl_password=x"], '"sasl_password" looks like a secret'),
    (["config.sink.options.aws_secret_access_key=x"], '"aws_secret_access_key" looks like a secret'),
    (["config.http.token=x"], '"token" looks like a secret'),
    (["config.catalog.url=postgres://u:p@h/d"], "config.catalog.url holds a password"),
    (["env.WINNOWD_KAFKA__GROUP=x"], "WINNOWD_KAFKA__GROUP"),
    (["terminationGracePeriodSeconds=64"], "must be at least 65, kafka.drain_timeout (20 s) and shutdown.grace (30 s)"),
    (["config.shutdown.grace=soon"], "config.shutdown.grace = soon: expected a duration"),
    (["config.shutdown.grace=3 moons"], "`moons` is no unit of time"),
    (["config.memory.budget=900MiB"], "resources.limits.memory = 1Gi: must be config.memory.budget (900 MiB)"),
    (["config.shard.target_bytes=2GiB"], "scratch.size = 2Gi: must be 4 times config.shard.target_bytes (2048 MiB)"),
    (["config.shard.target_bytes=2GiB", "config.sink.shuffle=false"], "must be 2 times config.shard.target_bytes (2048 MiB)"),
    (["config.selection.selector=coverage"], "scratch.size = 2Gi: must be config.spool.max_bytes (16384 MiB) and 4 times"),
    (["config.selection.selector=sensitivity"], "scratch.size = 2Gi: must be config.spool.max_bytes (16384 MiB) and 4 times"),
    (["config.selection.unit=tokens"], "scratch.size = 2Gi: must be config.spool.max_bytes (16384 MiB) and 4 times"),
    (["config.selection.selector=coverage", "config.spool.max_bytes=1920MiB"], "must be config.spool.max_bytes (1920 MiB) and"),
    # 1024 + 4 × 128 + 2 × 0.5 × 520 MiB, of 2 GiB.
    (
        ["config.selection.selector=coverage", "config.spool.max_bytes=1GiB", "config.selection.fraction=0.5", "config.window.max_bytes=520MiB"],
        "must be config.spool.max_bytes (1024 MiB) and 4 times config.shard.target_bytes (128 MiB) and what a window selects (520 MiB)",
    ),
    (
        ["config.selection.selector=coverage", "config.spool.folder=/other", "config.window.max_bytes=20GiB", "config.sink.shuffle=false"],
        "must be 2 times config.shard.target_bytes (128 MiB) and what a window selects (2048 MiB) at least",
    ),
    (["model.volume.configMap.name=a", "model.volume.emptyDir.sizeLimit=1Mi"], "model"),
    (["autoscaling.by=hpa", *POSTGRES, "resources.requests.cpu=null"], "resources.requests.cpu"),
    (["autoscaling.by=hpa", *POSTGRES, "autoscaling.minReplicas=9"], "must be at most maxReplicas (4)"),
]
# As much as is needed, to the byte.
ACCEPTED = [
    ["config.selection.selector=coverage", "config.spool.max_bytes=1GiB", "config.selection.fraction=0.5", "config.window.max_bytes=512MiB"],
    ["config.selection.selector=coverage", "config.spool.max_bytes=1280MiB", "config.selection.fraction=1", "config.window.max_bytes=128MiB"],
    ["config.selection.selector=importance_resampling", "config.window.max_bytes=20GiB"],
]
MODELS = {
    "ServiceMonitor": "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1",
    "PrometheusRule": "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1",
    "ScaledObject": "@kubernetes-models/keda/keda.sh/v1alpha1",
}


def sure(condition, problem):
    if not condition:
        sys.exit(f"chart: {problem}")


def helm(program, *arguments):
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)


def render(program, arguments, version=VERSIONS[-1], name="winnowd"):
    done = helm(program, "template", name, CHART, "--namespace", "curation", "--kube-version", version, *arguments)
    sure(done.returncode == 0, f"helm template {arguments}: {done.stderr}")
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def of_kind(documents, kind, suffix=""):
    found = [d for d in documents if d["kind"] == kind and d["metadata"]["name"].endswith(suffix)]
    sure(len(found) == 1, f"{len(found)} of kind {kind} called …{suffix}, expected one")
    return found[0]


def lint(programs):
    for program, (name, arguments) in itertools.product(programs, CASES.items()):
        done = helm(program, "lint", "--strict", CHART, *arguments)
        sure(done.returncode == 0, f"helm lint --strict, {name}: {done.stdout}{done.stderr}")


def rendered_alike(programs):
    """Every case for every version; what Helms differ in would differ in clusters."""
    cases = {}
    for (name, arguments), version in itertools.product(CASES.items(), VERSIONS):
        by_helm = [render(program, arguments, version) for program in programs]
        sure(all(documents == by_helm[0] for documents in by_helm), f"{name}: Helm versions render it differently")
        cases[name, version] = by_helm[0]
    return cases


def validate(cases, npm, folder):
    custom = []
    for (name, version), documents in cases.items():
        for document in documents:
            if document["kind"] in MODELS:
                custom.append(document)
                continue
            try:
                kubernetes_validate.validate(document, version.removesuffix(".0"), strict=True)
            except kubernetes_validate.ValidationError as e:
                sys.exit(f"chart: {name}, Kubernetes {version}, {document['kind']}: {e.message} at {list(e.path)}")
    sure({d["kind"] for d in custom} == set(MODELS), "not every kind of custom resource was rendered")
    # The compiler knows which fields there are, and the package's own validation what may stand in them.
    imports = "".join(f'import {{ {kind} }} from "{module}";\n' for kind, module in MODELS.items())
    calls = "".join(f"new {d['kind']}({json.dumps(without_kind(d))}).validate();\n" for d in custom)
    for suffix in ("ts", "mjs"):
        (npm / f"resources.{suffix}").write_text(imports + calls)
    compiler = ["node", "node_modules/typescript/bin/tsc", "--noEmit", "--skipLibCheck", "--target", "es2022"]
    for command in ([*compiler, "--module", "esnext", "--moduleResolution", "bundler", "resources.ts"], ["node", "resources.mjs"]):
        done = subprocess.run(command, cwd=npm, capture_output=True, text=True, check=False)
        sure(done.returncode == 0, f"custom resources: {done.stdout[-3000:]}{done.stderr[-3000:]}")
    return len(custom)


def without_kind(document):
    return {key: value for key, value in document.items() if key not in ("apiVersion", "kind")}


def read_by_the_daemon(winnowd, model, cases, folder):
    """The configuration with the variables of the container, as the daemon finds them."""
    for (name, version), documents in cases.items():
        if version != VERSIONS[-1]:
            continue
        container = of_kind(documents, "StatefulSet")["spec"]["template"]["spec"]["containers"][0]
        environment = {"PATH": os.environ["PATH"]}
        for variable in container["env"]:
            environment[variable["name"]] = variable.get("value", "from-a-secret-elsewhere")
        places = {"WINNOWD_MODEL__PATH": str(model), "WINNOWD_SINK__SCRATCH_DIR": str(folder), "TMPDIR": str(folder)}
        sure(places.keys() <= environment.keys(), f"{name}: not every place is set")
        toml = of_kind(documents, "ConfigMap", f"{'curator' if name == 'everything' else 'winnowd'}")["data"]["winnowd.toml"]
        (folder / "ca.pem").touch()
        (folder / "winnowd.toml").write_text(toml.replace("/etc/kafka-ca/", f"{folder}/"))
        done = subprocess.run(
            [winnowd, "check", "-c", folder / "winnowd.toml"], env=environment | places, capture_output=True, text=True, check=False
        )
        sure(done.returncode == 0, f"{name}: winnowd check: {done.stderr}\n{toml}")
        sure(not re.search(r"\d\.0$|e\+", toml, re.M), f"{name}: a whole number is printed as another:\n{toml}")
        sure(done.stdout.count("\n") > 5, f"{name}: winnowd check said only {done.stdout}")
        if name == "everything":
            sure("seed 18446744073709551615" in done.stdout, f"the seed is another: {done.stdout}")
            checked = tomllib.loads(toml)
            sure(checked["kafka"]["properties"] == {"fetch.wait.max.ms": "100"}, f"properties: {checked}")


def computed(programs, cases):
    pod = lambda documents: of_kind(documents, "StatefulSet")["spec"]["template"]["spec"]
    grace = lambda name: pod(cases[name, VERSIONS[-1]])["terminationGracePeriodSeconds"]
    sure((grace("default"), grace("everything")) == (65, 225), f"grace periods: {grace('default')}, {grace('everything')}")
    for documents in cases.values():
        container = pod(documents)["containers"][0]
        paths = {probe: container[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
        sure(list(paths.values()) == ["/healthz", "/healthz", "/readyz"], f"probes: {paths}")
    changed = [of_kind(render(programs[0], ["--set", f"config.selection.seed={n}"]), "StatefulSet") for n in (1, 2)]
    sums = {d["spec"]["template"]["metadata"]["annotations"]["checksum/config"] for d in changed}
    sure(len(sums) == 2, "another configuration does not restart the workers")
    fleet, everything = (cases[name, VERSIONS[-1]] for name in ("fleet", "everything"))
    sure("replicas" not in of_kind(fleet, "StatefulSet")["spec"], "replicas would be set back against the autoscaler")
    sure("volumeClaimTemplates" not in of_kind(fleet, "StatefulSet")["spec"], "a fleet keeps nothing on volumes")
    sure("volumeClaimTemplates" in of_kind(cases["sqlite", VERSIONS[-1]], "StatefulSet")["spec"], "SQLite needs a volume")
    sure(not [d for d in cases["sqlite", VERSIONS[-1]] if d["kind"] == "Job"], "a file of SQLite is migrated by its worker")
    ports = lambda policy: [{port["port"] for port in rule["ports"]} for rule in policy["spec"]["egress"]]
    expected = [{53}, {9093}, {443, 9000}, {5432}]
    sure(ports(of_kind(fleet, "NetworkPolicy", "winnowd")) == expected, "egress of the fleet")
    sure(ports(of_kind(everything, "NetworkPolicy", "curator")) == [{53}, {9092, 9093, 9094}, {5432}, {4318}, {80}], "egress of everything")
    sure(ports(of_kind(fleet, "NetworkPolicy", "migrate")) == [{53}, {5432}], "egress of the migration")
    for name, suffix, expected in (
        ("default", "winnowd", [{}]),
        ("fleet", "winnowd", [{"kubernetes.io/metadata.name": peer} for peer in ("monitoring", "training")]),
        ("everything", "curator", [{}, "198.51.100.0/24"]),
    ):
        (rule,) = of_kind(cases[name, VERSIONS[-1]], "NetworkPolicy", suffix)["spec"]["ingress"]
        peers = [p["ipBlock"]["cidr"] if "ipBlock" in p else p["namespaceSelector"].get("matchLabels", {}) for p in rule["from"]]
        sure(peers == expected and rule["ports"] == [{"port": "metrics", "protocol": "TCP"}], f"ingress of {name}: {rule}")
    closed_paths(cases)


def closed_paths(cases):
    """Nothing that the chart itself does or advises may need the token, without which these are closed in a pod."""
    texts = {path.name: path.read_text() for path in (CHART / "templates").rglob("*") if path.is_file()}
    texts |= {name: yaml.safe_dump_all(without_dashboards(documents)) for (name, _), documents in cases.items()}
    for name, text in texts.items():
        found = re.search(r"/status\b|/v1/weights\b", text)
        sure(not found, f"{name} asks for {found and found[0]}")


def without_dashboards(documents):
    """And without alerts, whose descriptions may speak of anything."""
    return [d for d in documents if d["kind"] not in ("ConfigMap", "PrometheusRule")]


def refused(programs):
    for program, (values, reason) in itertools.product(programs, REFUSED):
        done = helm(program, "template", "winnowd", CHART, *itertools.chain(*(("--set", value) for value in values)))
        sure(done.returncode != 0, f"{values} should be refused")
        sure(reason in done.stderr, f"{values} is refused without the word of `{reason}`: {done.stderr}")
    for program, values in itertools.product(programs, ACCEPTED):
        done = helm(program, "template", "winnowd", CHART, *itertools.chain(*(("--set", value) for value in values)))
        sure(done.returncode == 0, f"{values} should not be refused: {done.stderr}")


def alerts(cases, programs):
    source = yaml.safe_load((CHART / "files/alerts.yaml").read_text())
    sure(of_kind(cases["sqlite", VERSIONS[-1]], "PrometheusRule")["spec"] == source, "the PrometheusRule is not files/alerts.yaml")
    rules = [rule for group in source["groups"] for rule in group["rules"]]
    names = {rule["alert"] for rule in rules}
    headings = set(re.findall(r"^## (Winnowd\w+)$", (CHART / "RUNBOOK.md").read_text(), re.M))
    sure(names == headings, f"RUNBOOK.md and alerts differ in {names ^ headings}")
    for rule in rules:
        sure(rule["annotations"]["runbook_url"].endswith(f"#{rule['alert'].lower()}"), f"{rule['alert']}: another runbook")
    # 20 minutes of a window and a quarter of a second of a shard, three times.
    other = of_kind(cases["everything", VERSIONS[-1]], "PrometheusRule")["spec"]["groups"][0]["rules"]
    silent = next(rule for rule in other if rule["alert"] == "WinnowdNothingPublished")
    sure(silent["for"] == "61m", f"for: {silent['for']}")
    sure(silent["annotations"]["runbook_url"].startswith("https://wiki.example.com/winnowd#"), "runbook")
    tests = (ROOT / "tests/cluster/alerts.yaml").read_text()
    for name in names:
        fires = re.search(rf"alertname: {name}\n +eval_time: \S+\n +exp_alerts:\n", tests)
        sure(fires and re.search(rf"alertname: {name}, eval_time: \S+, exp_alerts: \[\]", tests), f"{name} lacks a test")
    return len(names)


def same_defaults():
    """What the chart takes for the daemon's defaults and version."""
    stated = re.search(r"\$defaults := dict(.*?)-}}", (CHART / "templates/_helpers.tpl").read_text(), re.S)[1]
    real = tomllib.loads((ROOT / "config/default.toml").read_text())
    for key, value in re.findall(r'"([a-z_.]+)" "([^"]*)"', stated):
        section, name = key.split(".")
        sure(real[section][name] == value, f"{key} is {value} in the chart and {real[section][name]} in config/default.toml")
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    sure(chart["appVersion"] == version, f"appVersion is {chart['appVersion']}, winnowd {version}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("winnowd", "model", "npm"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    parser.add_argument("--helm", action="append", required=True)
    parser.add_argument("--out", type=pathlib.Path, help="where the manifests are left for others")
    arguments = parser.parse_args()
    same_defaults()
    lint(arguments.helm)
    cases = rendered_alike(arguments.helm)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        n_custom = validate(cases, arguments.npm, folder)
        read_by_the_daemon(arguments.winnowd, arguments.model, cases, folder)
    computed(arguments.helm, cases)
    refused(arguments.helm)
    n_alerts = alerts(cases, arguments.helm)
    if arguments.out:
        for (name, version), documents in cases.items():
            if version == VERSIONS[-1]:
                (arguments.out / f"{name}.yaml").write_text(yaml.safe_dump_all(documents))
    n_documents = sum(map(len, cases.values()))
    print(
        f"chart: {n_documents} objects of {len(CASES)} sets of values for Kubernetes {' and '.join(VERSIONS)} are valid, "
        f"{n_custom} custom ones among them; {len(REFUSED)} mistakes are refused; {n_alerts} alerts"
    )


main()
