"""``python -m nashpo.llm`` is the command ``nashpo``, for launchers that start a module in each process:

accelerate launch --config_file CONFIG -m nashpo.llm train RECIPE
torchrun --nproc-per-node 8 -m nashpo.llm train RECIPE
"""

import sys

from nashpo.core.cli import main

if __name__ == "__main__":
    sys.exit(main())
