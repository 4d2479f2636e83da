"""A real SLURM with two nodes on this machine's loopback interface, without systemd and accounting."""

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import psutil

Nodes = Literal["plain", "named", "containers"]
CONFIGURATION = """\
ClusterName=local
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# SLURM waits until a job's credential expires, 120 s by default, before it starts the job again.
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort={port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdSpoolDir={folder}/spool.%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
ReturnToService=2
KillWait=10
MinJobAge=600
SlurmdTimeout=10
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={n1} CPUs=2 CoresPerSocket=2 RealMemory=8000
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={n2} CPUs=2 CoresPerSocket=2 RealMemory=8000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
"""


def slurm(*arguments: str) -> str:
    """Run one of SLURM's commands and return its output; SLURM_CONF must be set."""
    return subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=60).stdout


@contextmanager
def cluster(folder: Path, nodes: Nodes = "plain") -> Iterator[Mapping[str, str]]:
    """Start munge, the controller and two nodes; yields the environment that SLURM's commands need.

    With `nodes="named"`, jobs see the name of their node as the host name. With `nodes="containers"`, both nodes
    have the same host name, and each has a PID namespace of its own.
    """
    (folder / "state").mkdir(parents=True)
    folder.chmod(0o755)
    base = 20_000 + os.getpid() % 20_000 * 2
    configuration, hosts = folder / "slurm.conf", folder / "hosts"
    configuration.write_text(CONFIGURATION.format(folder=folder, port=base, n1=base + 1, n2=base + 2))
    environment = {"SLURM_CONF": str(configuration)}
    full_environment = {**os.environ, **environment}
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    start = ["munged", "--force", f"--key-file={key}", f"--socket={folder}/munge.sock",
             f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log",
             f"--seed-file={folder}/seed"]  # fmt: skip
    subprocess.run(start, check=True, capture_output=True)
    containers: list[subprocess.Popen[bytes]] = []
    try:
        subprocess.run(["slurmctld", "-c"], check=True, env=full_environment, capture_output=True)
        for node in ("n1", "n2"):
            (folder / f"spool.{node}").mkdir()
            command = ["slurmd", "-N", node]
            if nodes == "containers":
                # In the foreground (-D): the number in a PID file would be that of the namespace.
                inside = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "slurmd", "-D", "-N", node]
                containers.append(subprocess.Popen(inside, env=full_environment, stderr=subprocess.DEVNULL))
                continue
            if nodes == "named":
                # slurmd resolves the host name to an address.
                hosts.write_text(Path("/etc/hosts").read_text() + "\n127.0.0.1 n1 n2\n")
                steps = f"mount --bind {hosts} /etc/hosts && hostname {node} && exec slurmd -N {node}"
                command = ["unshare", "--uts", "--mount", "sh", "-c", steps]
            subprocess.run(command, check=True, env=full_environment, capture_output=True)
        for _ in range(150):
            shown = subprocess.run(
                ["sinfo", "-h", "-p", "main", "-o", "%T"], env=full_environment, capture_output=True, text=True
            )
            if set(shown.stdout.split()) == {"idle"}:
                break
            time.sleep(0.1)
        else:
            raise RuntimeError(
                f"SLURM does not start: {shown.stdout} {(folder / 'slurmctld.log').read_text()[-2000:]}"
            )
        yield environment
    finally:
        subprocess.run(
            ["scancel", "--user", "root", "--signal", "KILL", "--full"], env=full_environment, capture_output=True
        )
        for container in containers:
            container.kill()
            container.wait()
        for name in ("slurmctld", "munged") if containers else ("slurmd.n1", "slurmd.n2", "slurmctld", "munged"):
            with suppress(OSError, psutil.Error):
                process = psutil.Process(int((folder / f"{name}.pid").read_text()))
                process.terminate()
                try:
                    process.wait(10)
                except psutil.TimeoutExpired:  # it waits for the end of a job, or a test has suspended it
                    process.kill()
        shutil.rmtree(folder / "state", ignore_errors=True)
