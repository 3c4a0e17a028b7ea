"""A small byte-BPE model from scratch on real preference pairs: that the trainer runs on text, and nothing beyond.

Skipped where the AlpacaEval data (CC BY-NC, not part of the product) are absent.
"""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nashpo.core.rules import DPO, IPO, SPAC, Rule
from nashpo.llm.config import SelfPlayConfig
from nashpo.llm.packing import packed_logprobs
from nashpo.llm.responses import Scored, pack
from nashpo.llm.trainer import SelfPlayTrainer

DATA = Path(__file__).parents[3] / "shared" / "data" / "alpacaeval" / "judged_responses.jsonl.gz"
LETTERS = 160
"""Of each prompt and response that are used, to keep the test short."""
HELD_OUT = 200

pytestmark = pytest.mark.skipif(not DATA.exists(), reason="the AlpacaEval data are not here")


@pytest.fixture(scope="module")
def pairs() -> list[dict[str, Any]]:
    """The response that the judge liked best against the one that it liked least, for each instruction."""
    rows = []
    with gzip.open(DATA, "rt") as lines:
        for line in lines:
            item = json.loads(line)
            judged = sorted(item["responses"].values(), key=lambda response: response["p_beats_baseline"])
            texts = [response["text"][:LETTERS] for response in (judged[-1], judged[0])]
            if all(texts):
                prompt = item["prompt"][:LETTERS] + "\n\n"
                rows.append({"prompt": prompt, "chosen": texts[0], "rejected": texts[1]})
    order = np.random.default_rng(0).permutation(len(rows))
    return [rows[i] for i in order]


@pytest.fixture(scope="module")
def tokenizer(pairs: list[dict[str, Any]]) -> Any:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    texts = [text for row in pairs[HELD_OUT:] for text in row.values()]
    trained.train_from_iterator(texts, vocab_size=1000, special_tokens=["<s>", "</s>", "<pad>"], show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.fixture(scope="module")
def warm(pairs: list[dict[str, Any]], tokenizer: Any) -> dict[str, Any]:
    """The weights of a small Llama after a short supervised warm-up on the chosen responses."""
    model = _model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(120):
        rows = [pairs[HELD_OUT:][(8 * step + i) % (len(pairs) - HELD_OUT)] for i in range(8)]
        sequences = [Scored.completion(tokenizer(r["prompt"])["input_ids"], _ids(tokenizer, r)) for r in rows]
        loss = -packed_logprobs(model, pack(sequences)).sum() / sum(sum(s.mask) for s in sequences)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < losses[0] - 0.5
    return {name: value.clone() for name, value in model.state_dict().items()}


def _model(tokenizer: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **shape, **ids))


def _ids(tokenizer: Any, row: dict[str, Any]) -> list[int]:
    return [*tokenizer(row["chosen"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def wilson(successes: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % Wilson interval of a proportion."""
    share = successes / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return middle - half, middle + half


@pytest.mark.parametrize("rule", [DPO(tau=0.1), IPO(tau=0.1), SPAC(eta=10.0, lam=1.0, R=1.0)], ids=lambda r: r.name)
def test_losses_fall_and_margins_grow(
    rule: Rule, pairs: list[dict[str, Any]], tokenizer: Any, warm: dict[str, Any], tmp_path: Path
) -> None:
    model = _model(tokenizer)
    model.load_state_dict(warm)
    args = SelfPlayConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=32,
        learning_rate=5e-4,
        max_steps=100,
        logging_steps=20,
        warmup_steps=5,
        save_strategy="no",
        disable_tqdm=True,
    )
    made = SelfPlayTrainer(
        model,
        args=args,
        train_dataset=pairs[HELD_OUT:],
        eval_dataset=pairs[:HELD_OUT],
        processing_class=tokenizer,
        rule=rule,
    )
    before = made.evaluate()
    made.train()
    after = made.evaluate()
    logs = [entry for entry in made.state.log_history if "loss" in entry]
    assert before["eval_rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert logs[-1]["loss"] < logs[0]["loss"] < 1.02 * before["eval_loss"]
    assert logs[-1]["rewards/margins"] > logs[0]["rewards/margins"] > -0.05
    count = len(made.eval_dataset)
    low, high = wilson(after["eval_rewards/accuracies"] * count, count)
    print(
        f"{rule.name}: loss {before['eval_loss']:.4g} to {after['eval_loss']:.4g} held out, margin"
        f" {after['eval_rewards/margins']:.3g}, accuracy {after['eval_rewards/accuracies']:.3f}"
        f" (95 % interval {low:.3f} to {high:.3f}, {count} pairs)"
    )
    assert 0 <= low < high <= 1
