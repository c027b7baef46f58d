"""A cluster of three hosts over SSH, as `deploy/local/cluster.yaml` makes it: a job survives the loss of one.

The hosts are on this machine: each has its own network, processes, name, home, /tmp and /dev/shm, and an SSH server.
They share the disk, as machines with a network disk do. `make cluster` installs what it takes and runs this.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
import yaml

from tests.integration.conftest import ROOT, Runs
from tests.integration.servers import free_ports

SSHD = "/usr/sbin/sshd"
BRIDGE, OUTSIDE = "herobr0", "10.77.0.1"
ADDRESSES = {"hero-head": "10.77.0.2", "hero-one": "10.77.0.3", "hero-two": "10.77.0.4"}
TOKEN = "e" * 64
STEPS = 200
BEGIN = """
mount --bind {folder}/passwd /etc/passwd
mount --bind {folder}/tmp /tmp
mount -t tmpfs -o size=512m none /dev/shm
mkdir -p /run/sshd
hostname {name}
exec {sshd} -D -f {folder}/sshd.conf
"""
SSHD_CONF = """
ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {keys}/key.pub
StrictModes no
UsePAM no
PasswordAuthentication no
PidFile none
"""


def missing() -> str:
    """Why this cannot run here; empty: it can."""
    if os.geteuid() != 0:
        return "hosts of their own need root"
    tools = [name for name in ("ip", "rsync", "ssh", "ssh-keygen", "unshare", SSHD) if shutil.which(name) is None]
    if tools:
        return f"hosts of their own need {', '.join(tools)}, which `make cluster` installs"
    if subprocess.run(["unshare", "-n", "-m", "-u", "-p", "-f", "true"], capture_output=True).returncode:
        return "hosts of their own need namespaces, which this machine does not allow"
    return ""


pytestmark = [
    pytest.mark.cluster,
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=missing()),
]


def run(*words: str | Path) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def say(what: str) -> None:
    """A line of the transcript that `make cluster` shows."""
    print(f"{time.strftime('%H:%M:%S')}  {what}", flush=True)


def until(condition: Callable[[], Any], seconds: float, what: Callable[[], str] | str) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, what() if callable(what) else what
        time.sleep(0.2)


def is_open(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=2).close()
    except OSError:
        return False
    return True


class Host:
    """One host: a network namespace on the bridge, and below its first process everything that runs there."""

    def __init__(self, name: str, place: Path) -> None:
        self.name, self.address = name, ADDRESSES[name]
        self._link = f"veth-{name}"
        self._place = place
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Make it and wait for its SSH server."""
        name, place = self.name, self._place
        folder = place / name
        for inner in ("root", "tmp"):
            (folder / inner).mkdir(parents=True)
        passwd = Path("/etc/passwd").read_text("utf-8")
        (folder / "passwd").write_text(passwd.replace(":/root:", f":{folder}/root:", 1))
        (folder / "root" / ".bashrc").touch()
        (folder / "root" / "venv").symlink_to(sys.prefix)  # there is no way to a package index from here
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "host_key")
        (folder / "sshd.conf").write_text(SSHD_CONF.format(address=self.address, folder=folder, keys=place))
        run("ip", "netns", "add", name)
        run("ip", "link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "link", "set", self._link, "master", BRIDGE, "up")
        inside = ("ip", "-n", name)
        run(*inside, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for link in ("eth0", "lo"):
            run(*inside, "link", "set", link, "up")
        run(*inside, "route", "add", "default", "via", OUTSIDE)
        enter = ["ip", "netns", "exec", name, "unshare", "-m", "-u", "-p", "-f", "--kill-child", "--mount-proc"]
        begin = BEGIN.format(folder=folder, name=name, sshd=SSHD)
        with open(folder / "said", "wb") as said:
            self._process = subprocess.Popen(
                [*enter, "--propagation", "private", "bash", "-ec", begin],
                stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True,
            )  # fmt: skip
        until(lambda: is_open(self.address, 22), 30, f"{name} has no SSH server")

    def processes(self) -> list[psutil.Process]:
        """What runs on it; not the process outside that began it."""
        assert self._process is not None
        numbers = set(map(int, run("ip", "netns", "pids", self.name).split())) - {self._process.pid}
        return [psutil.Process(number) for number in numbers if psutil.pid_exists(number)]

    def ray(self) -> list[str]:
        """Commands of Ray's processes on it."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                command = " ".join(process.cmdline())
                if "/ray/" in command or command.startswith("ray::"):
                    found.append(command)
        return found

    def works(self) -> bool:
        """Whether it takes or does work of the cluster."""
        return any(command.startswith("ray::") or "/raylet/raylet" in command for command in self.ray())

    def die(self) -> None:
        """As when its power is cut: the others hear nothing from it any more."""
        run("ip", "link", "set", self._link, "down")
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        assert self._process is not None
        self._process.wait()

    def remove(self) -> None:
        """With everything that runs on it."""
        if self._process is not None and self._process.poll() is None:
            self.die()
        # the kernel takes its time over a network that nothing uses any more, so the link goes first
        for words in (["link", "del", self._link], ["netns", "del", self.name]):
            subprocess.run(["ip", *words], capture_output=True)


class Cluster:
    """The hosts, and the commands of somebody who uses them from outside."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.hosts: dict[str, Host] = {}
        self.laptop = place / "laptop"
        (self.laptop / ".ray").mkdir(parents=True)
        (self.laptop / ".ray" / "auth_token").write_text(TOKEN)
        (self.laptop / "tmp").mkdir()
        bin_folder = str(Path(sys.executable).parent)
        self.environment = {
            **os.environ, "HOME": str(self.laptop), "TMPDIR": str(self.laptop / "tmp"),
            "RAY_TMPDIR": str(self.laptop / "tmp"), "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
        }  # fmt: skip
        self.environment.pop("RAY_ADDRESS", None)
        self.file = place / "cluster.yaml"

    def build(self) -> None:
        """The network and the hosts."""
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.place / "key")
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "addr", "add", f"{OUTSIDE}/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        for name in ADDRESSES:
            self.hosts[name] = Host(name, self.place)
            self.hosts[name].start()
        self.file.write_text(yaml.safe_dump(self._configuration()))

    def _configuration(self) -> dict[str, Any]:
        """The file that is shipped, with our addresses; nothing is downloaded, and each worker has room for one."""
        config = yaml.safe_load((ROOT / "deploy" / "local" / "cluster.yaml").read_text("utf-8"))
        head, *workers = ADDRESSES.values()
        config["provider"] |= {"head_ip": head, "worker_ips": workers}
        config["auth"] = {"ssh_user": "root", "ssh_private_key": str(self.place / "key")}
        config["setup_commands"] = [words for words in config["setup_commands"] if "pip install" not in words]
        config["worker_start_ray_commands"][-1] += " --num-cpus=1"
        for kind in ("head", "worker"):
            config[f"{kind}_start_ray_commands"][-1] += " --object-store-memory=100000000"
        return config

    def ray(self, *words: str) -> str:
        """A command of Ray, from this repository, outside the cluster."""
        done = subprocess.run(
            ["ray", *words], cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=400,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def ssh_words(self, host: Host) -> list[str]:
        """The command that reaches a host, but for what it is to do there."""
        no_questions = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        return ["ssh", "-i", str(self.place / "key"), *no_questions, f"root@{host.address}"]

    def ssh(self, host: Host, command: str) -> None:
        """Run a command on a host."""
        run(*self.ssh_words(host), command)

    @contextlib.contextmanager
    def tunnel(self) -> Iterator[str]:
        """The address of the job server, which answers on the head itself only."""
        (port,) = free_ports(1)
        way = ["-N", "-L", f"127.0.0.1:{port}:127.0.0.1:8265"]
        process = subprocess.Popen([*self.ssh_words(self.hosts["hero-head"]), *way])
        try:
            until(lambda: is_open("127.0.0.1", port), 30, "no tunnel")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()

    def remove(self) -> None:
        """All of it, whatever was made."""
        for host in self.hosts.values():
            host.remove()
        subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True)
        shutil.rmtree(self.place, ignore_errors=True)


def on_this_machine() -> set[str]:
    """What a cluster could leave: networks, folders, processes on its hosts and those that spoke to them."""
    links = {f"link {link['ifname']}" for link in json.loads(run("ip", "-j", "link"))}
    spaces = {f"netns {name}" for name in run("ip", "netns", "list").split("\n") if name}
    places = {str(path) for place in ("/tmp/ray_ssh_*", "/var/tmp/hero-hosts-*") for path in Path("/").glob(place[1:])}
    here, living = os.readlink("/proc/self/ns/net"), set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            elsewhere = os.readlink(f"/proc/{process.pid}/ns/net") != here
            if elsewhere or "hero-hosts-" in " ".join(process.cmdline()):
                living.add(f"process {process.pid} {process.name()}")
    return links | spaces | places | living


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    before = on_this_machine()
    made = Cluster(Path(tempfile.mkdtemp(prefix="hero-hosts-", dir="/var/tmp")))  # /tmp is each host's own
    try:
        made.build()
        yield made
    finally:
        made.remove()
        for path in Path("/tmp").glob("ray_ssh_*"):  # Ray's launcher keeps its SSH connections there for 10 s
            if str(path) not in before:
                shutil.rmtree(path, ignore_errors=True)
    until(lambda: on_this_machine() <= before, 30, lambda: f"left: {on_this_machine() - before}")


@pytest.mark.timeout(1200)
def test_a_job_survives_the_loss_of_a_host(cluster: Cluster, tiny_store: str):
    store = str(shutil.copytree(tiny_store, cluster.place / "store"))
    runs = Runs(cluster.place / "home", store)
    runs.home.mkdir()
    hosts = cluster.hosts
    said = cluster.ray("up", "-y", "--no-config-cache", str(cluster.file))
    assert TOKEN not in said
    token = cluster.place / "hero-one" / "root" / ".ray" / "auth_token"
    until(token.exists, 120, said)
    until(lambda: all(host.ray() for host in hosts.values()), 120, said)
    assert [oct(path.stat().st_mode & 0o777) for path in (token.parent, token)] == ["0o700", "0o600"]
    assert not is_open(ADDRESSES["hero-head"], 8265), "the dashboard answers on the head itself only"
    say(f"`ray up` has made a head and two workers: {', '.join(ADDRESSES)}")

    elastic = ["--scale.num-workers", "2", "--scale.min-workers", "1", "--checkpoint.every", "20"]
    words = runs.words("far", "--steps", str(STEPS), *elastic, "--tracking.log-every", "1", "--evaluation.every", "0")
    with cluster.tunnel() as address:
        until(lambda: alive(address) == 3, 120, "not all hosts joined")
        submit = [sys.executable, "-m", "jobs.submit", "--address", address, "train", *words]
        with open(cluster.place / "job.said", "wb") as out:
            job = subprocess.Popen(
                submit, cwd=ROOT, env=cluster.environment | {"HERO_HOME": str(runs.home)}, stdout=out, stderr=out,
            )  # fmt: skip
        try:
            runs.until(lambda: runs.step("far") >= 30, job)
            first = start(runs, 0)
            assert first["world"] == 2 and first["host"] in ("hero-one", "hero-two")
            hosts[first["host"]].die()  # that of rank 0, which writes checkpoints and record
            reached = runs.step("far")
            say(f"{first['host']}, the host of rank 0 of 2, has died when step {reached} of {STEPS} was recorded")
            assert reached < STEPS, "it was over before the host died"
            code = job.wait(timeout=400)
        finally:
            job.send_signal(signal.SIGKILL)
            job.wait()
    text = (cluster.place / "job.said").read_text()
    assert code == 0 and f"run far finished at step {STEPS}" in text, text
    (other,) = {"hero-one", "hero-two"} - {first["host"]}
    last = start(runs, -1)
    assert last["world"] == 1 and last["host"] == other, "it went on on the host that was left"
    say(f"the job has gone on on {other} alone, to its end, and what it said was:\n{text}")
    steps = sorted(step for step, metric in runs.record("far") if metric == "train/lr")
    assert steps == list(range(1, STEPS + 1)), "every step once"
    runs.assert_tracked_once("far", f"sqlite:///{runs.home}/mlflow.db")

    cluster.ray("down", "-y", str(cluster.file))
    assert hosts["hero-head"].ray() == []
    until(lambda: not hosts[other].works(), 120, lambda: f"left on a worker: {hosts[other].ray()}")
    cluster.ssh(hosts[other], "bash -ic 'ray stop'")  # of a worker, `ray down` leaves the process that reads its logs
    assert hosts[other].ray() == []
    say("every step is recorded once; after `ray down` and `ray stop` nothing of Ray runs on any host")


def alive(address: str) -> int:
    """How many hosts the cluster has."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    answer = requests.get(f"{address}/api/v0/nodes", headers=headers, timeout=30)
    answer.raise_for_status()
    return sum(node["state"] == "ALIVE" for node in answer.json()["data"]["result"]["result"])


def start(runs: Runs, number: int) -> dict[str, Any]:
    """What a start of the run was given, in the order of starts."""
    found = sorted((runs.home / "runs" / "far" / "starts").glob("*.json"))
    return json.loads(found[number].read_text())
