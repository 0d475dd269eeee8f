"""A Slurm of one node on this machine, without accounting, for as long as a command runs.

    python -m tests.slurm.local COMMAND …

needs Debian's slurmctld, slurmd, slurm-client and munge, and root, as whom slurmd starts jobs. All
it writes lies in a temporary folder, ports are free ones, and no file of another Slurm is touched.
The node claims memory and a GPU that need not be there, so that requests for both can be met.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
PROGRAMS = (*DAEMONS, "sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")
# Daemons of Debian's packages lie where a user's PATH may not look.
SEARCHED = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
PATIENCE = 60  # seconds until the node must be there

CONFIGURATION = """\
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
SlurmctldPort={controller}
SlurmdPort={node}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=1,sched_interval=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=64000 Gres=gpu:1 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
# The executor's job step starts srun without any SLURM_ variable, SLURM_CONF included: elsewhere
# it would find /etc/slurm/slurm.conf.
WRAPPED = ("srun", "scontrol")
WRAPPER = """\
#!/bin/sh
SLURM_CONF={folder}/slurm.conf exec {program} "$@"
"""


def missing() -> str | None:
    """Why there can be no Slurm here, or None."""
    lacking = [name for name in PROGRAMS if shutil.which(name, path=SEARCHED) is None]
    if lacking:
        return f"no {', '.join(lacking)} here (apt-get install slurmctld slurmd slurm-client munge)"
    return None if os.geteuid() == 0 else "a Slurm that starts jobs needs root"


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Run a Slurm whose files lie in ``folder``; the environment in which its commands find it.

    Raises
    ------
    RuntimeError
        if a daemon ends, or the node is not there in a minute; with the daemons' logs
    """
    environment = _configure(folder)
    options = {
        "munged": (
            *("--foreground", "--force", f"--key-file={folder}/munge/key"),
            *(f"--socket={folder}/munge/socket", f"--pid-file={folder}/munge/pid"),
            *(f"--log-file={folder}/munge/log", f"--seed-file={folder}/munge/seed"),
        ),
        "slurmctld": ("-D", "-c"),
        "slurmd": ("-D",),
    }
    daemons: list[subprocess.Popen] = []
    try:
        for name in DAEMONS:
            with (folder / f"{name}.log").open("wb") as log:
                program = shutil.which(name, path=SEARCHED)
                daemons.append(
                    subprocess.Popen(
                        [program, *options[name]],
                        env=environment,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
            if name == "munged":
                _wait_for(folder, daemons, (folder / "munge" / "socket").exists)
        _wait_for(folder, daemons, lambda: _idle(environment))
        yield environment
    finally:
        if len(daemons) == len(DAEMONS):
            subprocess.run(["scancel", "--partition", "main"], env=environment, check=False)
            _wait_for_end(environment)
        for daemon in reversed(daemons):
            daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(20)
            daemon.kill()
            daemon.wait()


def _configure(folder: Path) -> dict[str, str]:
    for name in ("munge", "state", "spool", "bin"):
        (folder / name).mkdir(parents=True)
    key = folder / "munge" / "key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    controller, node = _free_ports(2)
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(
            folder=folder,
            host=socket.gethostname().partition(".")[0],
            controller=controller,
            node=node,
            cpus=os.cpu_count(),
        )
    )
    (folder / "gres.conf").write_text("AutoDetect=off\nName=gpu File=/dev/null\n")
    for name in WRAPPED:
        wrapper, program = folder / "bin" / name, shutil.which(name, path=SEARCHED)
        wrapper.write_text(WRAPPER.format(folder=folder, program=program))
        wrapper.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    environment["SLURM_CONF"] = str(folder / "slurm.conf")
    environment["PATH"] = f"{folder / 'bin'}{os.pathsep}{SEARCHED}"
    return environment


def _free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _wait_for(folder: Path, daemons: list[subprocess.Popen], ready) -> None:
    end = time.monotonic() + PATIENCE
    while not ready():
        if time.monotonic() > end or any(daemon.poll() is not None for daemon in daemons):
            logs = [f"{log.name}:\n{log.read_text()[-2000:]}" for log in folder.glob("*.log")]
            raise RuntimeError("Slurm does not start here\n" + "\n".join(logs))
        time.sleep(0.5)


def _idle(environment: dict[str, str]) -> bool:
    return _asked(["sinfo", "--noheader", "--format=%T"], environment) == "idle"


def _wait_for_end(environment: dict[str, str]) -> None:
    """Until no job is left, a minute at most."""
    end = time.monotonic() + PATIENCE
    while _asked(["squeue", "--noheader"], environment) and time.monotonic() < end:
        time.sleep(0.5)


def _asked(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    return done.stdout.strip()


def main(command: list[str]) -> int:
    """Run a command beside a Slurm of its own; its exit code, or 1 with the reason."""
    if reason := missing():
        print(f"no Slurm: {reason}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="slurm") as folder:
        Path(folder).chmod(0o755)  # munge's socket is for everybody
        with slurm(Path(folder)) as environment:
            return subprocess.run(command, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
