"""``python -m nashpo.llm`` is the command ``nashpo``, for launchers that start a module in each process:

accelerate launch --config_file CONFIG -m nashpo.llm train RECIPE
torchrun --nproc-per-node 8 -m nashpo.llm train RECIPE
"""

import sys

from nashpo.core.cli import GOOD, main


def run() -> int:
    """The command, and the end of its process group: one that is left over may abort Python as it ends.

    After a failure it is left: to close it could mean to wait for a process that is gone.
    """
    status = main()
    dist = sys.modules.get("torch.distributed")
    if status == GOOD and dist is not None and dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
    return status


if __name__ == "__main__":
    sys.exit(run())
