"""What benches/compare and benches/quality share: programs, environments of Python, tables."""
import collections
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

BENCHES = pathlib.Path(__file__).resolve().parent.parent
CACHE = pathlib.Path(os.environ.get("WINNOWD_CACHE", pathlib.Path.home() / ".cache/winnowd"))
# The published package. Newer versions of NLTK cut tokens otherwise.
PACKAGE = ["data-selection==1.0.3", "nltk==3.9.4", "numpy>=2,<3"]

NAME = pathlib.Path(sys.argv[0]).name


def say(message):
    print(f"{NAME}: {message}", file=sys.stderr, flush=True)


Measured = collections.namedtuple("Measured", "seconds cpu_seconds peak_bytes stdout")


def run(command, cores, **environment):
    """Runs a program on some cores: its seconds by the clock and by CPU time, peak resident size and output."""
    command = ["taskset", "-c", ",".join(map(str, cores)), *map(str, command)]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        began = time.perf_counter()
        child = subprocess.Popen(command, stdout=out, stderr=errors, env={**os.environ, **environment})
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), errors.seek(0)
        if child.returncode != 0:
            sys.exit(f"{NAME}: {' '.join(command)}\n{errors.read().decode()[-3000:]}")
        return Measured(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, out.read().decode())


def build(profile, commands=(["bench", "--no-run"],)):
    """The executables, by name: `winnowd`, which benches may ask for, and with `bench` `rates` and `daemon`."""
    found = {}
    for command in commands:
        say(f"cargo {' '.join(command)} --profile {profile}")
        command = ["cargo", *command, "--quiet", "--profile", profile, "--message-format=json"]
        messages = subprocess.run(command, cwd=BENCHES.parent, check=True, stdout=subprocess.PIPE).stdout
        for message in map(json.loads, messages.splitlines()):
            if message.get("executable"):
                found[message["target"]["name"]] = message["executable"]
    return found


def python(name, packages):
    """Python with packages, in an environment of its own."""
    venv = CACHE / name
    executable = venv / "bin/python"
    if not (venv / "complete").exists():
        say(f"installing {', '.join(packages)} into {venv}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
        subprocess.run([executable, "-m", "pip", "install", "--quiet", *packages], check=True, stdout=sys.stderr)
        (venv / "complete").touch()
    return executable


def table(title, header, rows):
    print(f"\n### {title}\n\n| {' | '.join(header)} |\n| --- |{' --: |' * (len(header) - 1)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def show(*command):
    """What a program prints."""
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=BENCHES).stdout.strip()


def machine(profile, executable, packages):
    """Two sentences on what was measured where."""
    cpu = dict(line.split(":", 1) for line in show("lscpu").splitlines() if ":" in line)
    flags = [flag for flag in ("avx2", "avx512f", "avx512bw", "sha_ni") if flag in cpu.get("Flags", "").split()]
    versions = show(executable, "-m", "pip", "list", "--format=freeze").split()
    versions = [v for v in versions if v.startswith(packages)]
    print(f"Machine: {os.cpu_count()} × {cpu.get('Model name', '?').strip()} ({', '.join(flags)}), {platform.system()} "
          f"{platform.release()}, {show('rustc', '--version')}, profile `{profile}`.")
    print(f"Commit {show('git', 'describe', '--always', '--dirty')}. Python {platform.python_version()}, {', '.join(versions)}.")
