"""Back ends of the launcher by the name that its user types; `tools.launch` asks here and knows none of them."""

from serving.command import UserError
from tools.launchers.jobset import JobSetLauncher
from tools.launchers.launcher import Launcher
from tools.launchers.local import LocalLauncher
from tools.launchers.slurm import SlurmLauncher
from tools.launchers.ssh import SshLauncher
from tools.launchers.tpu_vm import TpuVmLauncher

LAUNCHERS: dict[str, type[Launcher]] = {
    "local": LocalLauncher,
    "ssh": SshLauncher,
    "slurm": SlurmLauncher,
    "tpu_vm": TpuVmLauncher,
    "jobset": JobSetLauncher,
}


def require_backend(name: str) -> str:
    """`name`, when there is a back end called so.

    Raises:
      UserError: when there is none.
    """
    if name not in LAUNCHERS:
        raise UserError(f"--backend={name}: no such back end; there are {', '.join(LAUNCHERS)}")
    return name
