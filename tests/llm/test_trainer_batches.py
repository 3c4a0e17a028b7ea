"""How a batch is cut, into micro-batches, over processes or into rows, changes nothing that is trained."""

import json
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trained import logs, weights

from nashpo.core.rules import DPO, IPO, SPPO, Rule
from nashpo.llm.config import checkpointing

Make = Callable[..., Any]


@pytest.mark.parametrize("rule", [DPO(tau=0.1), SPPO(eta=2.0)], ids=lambda rule: rule.name)
def test_accumulation_changes_nothing(rule: Rule, trainer: Make) -> None:
    """2 × 4 against 8 × 1 on 13 rows, two epochs: losses, gradient norms and weights to 1e-6 relative."""
    whole = trainer(rule)
    parts = trainer(rule, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    whole.train()
    parts.train()
    assert len(logs(whole)) == len(logs(parts)) == 4
    for a, b in zip(logs(whole), logs(parts), strict=True):
        for name in ("loss", "grad_norm", "rewards/chosen", "rewards/accuracies", "logps/rejected"):
            np.testing.assert_allclose(a[name], b[name], rtol=1e-6, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(weights(whole.model), weights(parts.model), rtol=0, atol=1e-6)


_WORKER = """
    import json, sys
    from pathlib import Path
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from nashpo.core.rules import DPO
    from nashpo.llm.config import SelfPlayConfig
    from nashpo.llm.trainer import SelfPlayTrainer

    folder, per_device, steps = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    rows = json.loads((folder / "rows.json").read_text())
    args = SelfPlayConfig(output_dir=str(folder / "out"), use_cpu=True, per_device_train_batch_size=per_device,
        gradient_accumulation_steps=steps, logging_steps=1, learning_rate=1e-3, optim="sgd", save_strategy="no",
        disable_tqdm=True, num_train_epochs=2, per_device_eval_batch_size=3, padding_free=True)
    trainer = SelfPlayTrainer(str(folder / "model"), args=args, train_dataset=rows, eval_dataset=rows[:7],
        rule=DPO(tau=0.1))
    trainer.train()
    metrics = trainer.evaluate()
    if trainer.accelerator.is_main_process:
        model = trainer.accelerator.unwrap_model(trainer.model)
        torch.save([p.detach() for p in model.parameters()], folder / "weights.pt")
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        found = {"logs": logs, "eval": metrics, "world": trainer.accelerator.num_processes}
        (folder / "found.json").write_text(json.dumps(found))
"""


def test_two_processes_with_uneven_batches_change_nothing(
    trainer: Make, tmp_path: Path, tiny_llama: Make, byte_tokenizer: Make, small_pairs: list[dict[str, Any]]
) -> None:
    """2 processes × 2 rows × 2 steps against 8 × 1 on 13 rows. The last update has 5 rows: 3 + 2 of them, and what the
    sampler repeats to fill the batches has weight 0. Also the metrics of an evaluation of 7 rows in threes."""
    model, tokenizer = tiny_llama(), byte_tokenizer()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "rows.json").write_text(json.dumps(small_pairs))
    (tmp_path / "worker.py").write_text(textwrap.dedent(_WORKER))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(tmp_path / "worker.py"), str(tmp_path), "2", "2"]
    workers = [
        subprocess.Popen(
            command,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    alone = trainer(DPO(tau=0.1), eval_dataset=small_pairs[:7], per_device_eval_batch_size=3)
    alone.train()
    expected = alone.evaluate()
    outputs = [worker.communicate(timeout=120)[0].decode() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(outputs)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["world"] == 2
    for a, b in zip(logs(alone), found["logs"], strict=True):
        for name in ("loss", "grad_norm", "rewards/chosen", "rewards/accuracies", "logps/rejected", "num_tokens"):
            np.testing.assert_allclose(a[name], b[name], rtol=1e-6, atol=1e-6, err_msg=name)
    together = np.concatenate([p.numpy().ravel() for p in torch.load(tmp_path / "weights.pt")])
    np.testing.assert_allclose(weights(alone.model), together, rtol=0, atol=1e-6)
    for name in ("eval_loss", "eval_rewards/accuracies", "eval_rewards/margins", "eval_theory/kl_reference"):
        np.testing.assert_allclose(expected[name], found["eval"][name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_packed_and_padded_training_agree(trainer: Make) -> None:
    """The same losses and gradient norms to fp32 rounding, with activation checkpointing too."""
    runs = [
        trainer(IPO(tau=0.2)),
        trainer(IPO(tau=0.2), padding_free=False),
        trainer(IPO(tau=0.2), **checkpointing(use_reentrant=False)),
    ]
    for run in runs:
        run.train()
    for other in runs[1:]:
        for a, b in zip(logs(runs[0]), logs(other), strict=True):
            np.testing.assert_allclose(
                [a["loss"], a["grad_norm"]], [b["loss"], b["grad_norm"]], rtol=2e-5, err_msg="loss, gradient norm"
            )
