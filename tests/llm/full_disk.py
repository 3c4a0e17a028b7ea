"""One run of ``nashpo train`` for a test: RECIPE OUTPUT_DIR, told as the command tells it."""

import sys

import torch

from nashpo.core.cli import main

torch.set_num_threads(1)
sys.exit(main(["train", sys.argv[1], f"output_dir={sys.argv[2]}", "evaluation=null", "--quiet"]))
