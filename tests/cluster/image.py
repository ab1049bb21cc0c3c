#!/usr/bin/env python3
"""The Dockerfile without a container engine: its instructions, in a clean root of Debian's.

    image.py ROOTS WINNOWD           WINNOWD stands in for what `cargo build` makes; all else is done as it stands
    image.py ROOTS --toolchain DIR   compiles, too, with this Rust (a folder of rustup's toolchains) and crates from ~/.cargo: half an hour

ROOTS: a folder that keeps Debian's roots for the next time. What the last stage copies is then entered as its USER: the defaults
must be those of config/default.toml, and `winnowd demo` must publish. There must be no shell, and no file may have a time of its own.
Prints the size. Needs root and debootstrap.
"""
import argparse
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
# What rust:…-bookworm has of Debian's that the steps use.
PACKAGES = {False: "ca-certificates,binutils", True: "ca-certificates,build-essential,perl"}
# Makes what it is told to, where it is told to.
STAND_IN = """#!/bin/sh
[ "$1" = build ] || exit 64
install -D /program target/release/winnowd
"""
# Binds root to be seen, gives it /proc and /dev/null, and becomes the command. Arguments: root, user, folder, command.
ENTER = r"""
set -eu
root=$1 user=$2 folder=$3; shift 3
mkdir -p "$root/proc" "$root/dev"
[ -e "$root/dev/null" ] || touch "$root/dev/null"
mount -t proc proc "$root/proc"
mount --bind /dev/null "$root/dev/null"
for bind in ${BINDS:-}; do mkdir -p "$root$bind"; mount --bind "$bind" "$root$bind"; done
exec chroot --userspec="$user" --groups= "$root" /usr/bin/env -i -C "$folder" "$@"
"""


def instructions(dockerfile):
    """(instruction, rest) of each, comments and continued lines put away."""
    text = "\n".join(line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#"))
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if line.strip():
            yield line.split(None, 1)


def debian(roots, compiles, into):
    """A root that nobody has touched, from the archive of an earlier time where there is one."""
    archive = roots / f"bookworm-{'build' if compiles else 'run'}.tar"
    if not archive.exists():
        made = roots / "new"
        shutil.rmtree(made, ignore_errors=True)
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES[compiles]}", "bookworm", made]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            print(f"image: debootstrap: {(done.stdout + done.stderr)[-500:]}", file=sys.stderr)
            sys.exit(3)
        subprocess.run(["tar", "-C", made, "-cf", f"{archive}.part", "."], check=True)
        os.replace(f"{archive}.part", archive)
        shutil.rmtree(made)
    into.mkdir()
    subprocess.run(["tar", "-C", into, "-xf", archive], check=True)


def enter(root, user, folder, environment, command, binds=()):
    line = ["unshare", "--mount", "sh", "-c", ENTER, "sh", root, user, folder, *(f"{k}={v}" for k, v in environment.items()), *command]
    return subprocess.run(line, capture_output=True, text=True, check=False, env=os.environ | {"BINDS": " ".join(binds)})


def must(done, what):
    if done.returncode != 0:
        sys.exit(f"image: {what}: exit code {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def build(steps, root, environment, binds):
    """The first stage, up to what the last one takes."""
    folder, shell = "/", ["/bin/sh", "-c"]
    for instruction, rest in steps:
        if instruction == "SHELL":
            shell = [word.strip('"') for word in re.findall(r'"[^"]*"', rest)]
        elif instruction == "WORKDIR":
            folder = rest
            (root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif instruction == "ENV":
            environment |= dict(word.split("=", 1) for word in shlex.split(rest))
        elif instruction == "COPY":
            *sources, target = rest.split()
            for source in sources:
                place = root / folder.lstrip("/") / target
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, place, dirs_exist_ok=True)
                else:
                    shutil.copy(ROOT / source, place)
        elif instruction == "RUN":
            must(enter(root, "0:0", folder, environment, [*shell, rest], binds), f"RUN {' '.join(rest.split())[:100]}…")
        elif instruction not in ("FROM", "ARG"):
            sys.exit(f"image: the first stage has {instruction}, which this does not know")


def check_files(image):
    """Nothing to work with for whoever breaks in, and nothing that two builds of the same sources would differ in."""
    files = [path for path in image.rglob("*") if not path.is_symlink()]
    if dated := [str(path) for path in files if path.stat().st_mtime != 0]:
        sys.exit(f"image: files with a time of their own: {dated}")
    programs = [path.name for path in files if path.is_file() and path.stat().st_mode & 0o111]
    if odd := [name for name in programs if name != "winnowd" and ".so" not in name]:
        sys.exit(f"image: programs that nobody needs: {odd}")
    return sum(path.stat().st_size for path in files if path.is_file())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", type=pathlib.Path)
    parser.add_argument("winnowd", type=pathlib.Path, nargs="?")
    parser.add_argument("--toolchain", type=pathlib.Path)
    arguments = parser.parse_args()
    if (arguments.winnowd is None) == (arguments.toolchain is None):
        parser.error("either WINNOWD or --toolchain")
    stages = []
    for instruction, rest in instructions(ROOT / "Dockerfile"):
        stages += [[]] if instruction == "FROM" else []
        if stages:
            stages[-1].append((instruction, rest))
    first, last = stages
    last = {instruction: rest for instruction, rest in last}
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder) / "root"
        debian(arguments.roots, arguments.toolchain is not None, root)
        environment, binds = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/root"}, ()
        if arguments.toolchain:
            binds = (str(arguments.toolchain.resolve()), str(pathlib.Path.home() / ".cargo"))
            environment["PATH"] = f"{binds[0]}/bin:{environment['PATH']}"
            environment["CARGO_HOME"] = binds[1]
        else:
            shutil.copy(arguments.winnowd, root / "program")
            (root / "usr/local/bin/cargo").write_text(STAND_IN)
            (root / "usr/local/bin/cargo").chmod(0o755)
        build(first, root, environment, binds)
        image = root / "image"
        size = check_files(image)
        packed = pathlib.Path(folder) / "image.tar.gz"
        with tarfile.open(packed, "w:gz") as archive:
            archive.add(image, ".")
        of_last = dict(word.split("=", 1) for word in shlex.split(last["ENV"]))
        enter_image = lambda *command: run_in(image, last["USER"], last["WORKDIR"], of_last, command)
        if enter_image("check", "--defaults") != (ROOT / "config/default.toml").read_text():
            sys.exit("image: its defaults are not config/default.toml")
        said = enter_image("demo")
        if "190 selected" not in said:
            sys.exit(f"image: the demo says {said}")
        sizes = f"{size / 1e6:.0f} MB with this program, {packed.stat().st_size / 1e6:.0f} MB packed"
        print(f"image: {sizes}; as user {last['USER']} the demo selects 190 documents")


def run_in(image, user, folder, environment, command):
    """As an engine would: no shell and no env are in there to be asked."""

    def become():
        os.chroot(image)
        os.chdir(folder)
        os.setgroups([])
        user_id, group_id = map(int, user.split(":"))
        os.setgid(group_id)
        os.setuid(user_id)

    (image / "proc").mkdir(exist_ok=True)
    must(subprocess.run(["mount", "-t", "proc", "proc", image / "proc"], capture_output=True, text=True, check=False), "mounting /proc")
    try:
        line = ["/usr/local/bin/winnowd", *command]
        done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment, preexec_fn=become)
    finally:
        subprocess.run(["umount", "-l", image / "proc"], check=False)
    return must(done, f"winnowd {' '.join(command)}")


main()
