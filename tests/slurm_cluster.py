"""A real Slurm on this machine: its daemons started by hand on loopback, with a GPU that is none.

Slurm's daemons want root. Debian: ``apt-get install slurmctld slurmd slurm-client munge``.
"""

import os
import platform
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "munge", "slurmctld", "slurmd", "scontrol", "sinfo", "sbatch", "squeue", "scancel")

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SwitchType=switch/none
ReturnToService=2
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
KillWait=5
MinJobAge=600
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=100000,bf_interval=2,sched_interval=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
MailProg=/bin/true
GresTypes=gpu
DefMemPerCPU=500
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} Boards=1 SocketsPerBoard=1 CoresPerSocket={cores} ThreadsPerCore=1 \
RealMemory=4000 Gres=gpu:1 State=UNKNOWN
PartitionName=test Nodes={host} Default=YES MaxTime=60 State=UP OverSubscribe=NO
"""


def missing() -> list[str]:
    """What this machine lacks to run Slurm."""
    return [name for name in PROGRAMS if shutil.which(name) is None] + ["root"] * (os.geteuid() != 0)


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Run a Slurm of one node, with one GPU, while the block runs.

    Parameters
    ----------
    folder : Path
        Everything that the daemons write.

    Yields
    ------
    dict
        Environment of Slurm's commands.
    """
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    controller_port, node_port = _free_ports(2)
    cores = os.cpu_count()
    configuration = CONFIGURATION.format(
        folder=folder, host=_host(), cores=cores, controller_port=controller_port, node_port=node_port
    )
    (folder / "slurm.conf").write_text(configuration)
    (folder / "gres.conf").write_text("AutoDetect=off\nName=gpu File=/dev/null\n")
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    own = [f"--{name}-file={folder / f'munge.{name}'}" for name in ("key", "log", "pid", "seed")]
    with ExitStack() as daemons:
        socket_ = f"--socket={folder / 'munge.socket'}"
        daemons.enter_context(_daemon(["munged", "--foreground", "--force", socket_, *own], environment))
        _wait_for(["munge", "--no-input", socket_], environment)
        daemons.enter_context(_daemon(["slurmctld", "-D"], environment))
        _wait_for(["scontrol", "ping"], environment)
        daemons.enter_context(_daemon(["slurmd", "-D", "-N", _host()], environment))
        _wait_for(["sinfo", "--noheader", "--states=idle", "--format=%T"], environment, "idle")
        yield environment
        subprocess.run(["scancel", "--me", "--signal=KILL", "--full"], env=environment, check=False)


def _host() -> str:
    return platform.node().partition(".")[0]


def _free_ports(count: int) -> list[int]:
    with ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def _daemon(command: Sequence[str], environment: dict[str, str]) -> Iterator[None]:
    output = subprocess.DEVNULL  # it has a log
    process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, stdin=output)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(command: Sequence[str], environment: dict[str, str], expected: str = "") -> None:
    """Repeat a command until it succeeds and says what is expected."""
    deadline = time.monotonic() + 30
    while True:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode == 0 and expected in done.stdout:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        time.sleep(0.1)
