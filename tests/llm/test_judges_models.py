"""Judges with weights on tiny random models: their answers against the formula, one unpadded row at a time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nashpo.llm.judges.config import GPMConfig, PairLMConfig, RewardModelConfig
from nashpo.llm.judges.gpm import preference_score
from nashpo.llm.judges.judge import Pair
from nashpo.llm.judges.matrix import judge_responses
from nashpo.llm.judges.train_reward import RewardTraining, pair_accuracy, train_reward_model

CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
PAIRS = [
    Pair("why?", "because", "no idea, but it may be so"),
    Pair("why?", "no idea, but it may be so", "because"),
    Pair("and how?", "so", "thus"),
    Pair([{"role": "user", "content": "why?"}], "because", "no idea, but it may be so"),
    Pair("why?", "because", "thus"),
]
FLOAT32 = 2e-6
"""Rounding of logits of order 1 in a two-layer float32 model, padded against unpadded."""

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path, byte_tokenizer: Callable[..., Any], tiny_llama: Callable[..., Any]) -> Save:
    """A maker of folders with a tiny Llama and a byte tokenizer with a chat template."""

    def make(name: str = "model", model: Any = None, **options: Any) -> Path:
        folder = tmp_path / name
        (tiny_llama() if model is None else model).save_pretrained(folder)
        byte_tokenizer(**{"template": CHAT, **options}).save_pretrained(folder)
        return folder

    return make


def classifier(seed: int = 0, **options: Any) -> Any:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = {"vocab_size": 259, "max_position_embeddings": 512, "num_labels": 1, "initializer_range": 0.2, **shape}
        config |= {"attention_dropout": 0.5, "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1}
        return LlamaForSequenceClassification(LlamaConfig(**{**config, **options}))


def ids_of(text: str) -> list[int]:
    """Bytes behind <s>, </s> and <pad>, in the order of the byte-level alphabet; <s> and </s> in the text as tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    place = {symbol: 3 + i for i, symbol in enumerate(sorted(ByteLevel.alphabet()))}
    ids: list[int] = []
    for n, part in enumerate(text.split("</s>")):
        inner = [place["Ġ" if letter == " " else "Ċ" if letter == "\n" else letter] for letter in part]
        ids += ([1] if n else []) + inner
    return ids


# A causal LM that answers with a letter.


def test_pair_lm_is_the_softmax_of_two_logits(save: Save) -> None:
    """The published input: context in plain turns, no begin token, and the header of an answer at the end.

    transformers' chat templates drop the first line break behind a block and the last one of all.
    """
    from transformers import LlamaForCausalLM

    folder = save()
    judge = PairLMConfig(path=str(folder), batch_size=2).build("cpu")
    judge.check()
    verdicts = judge.compare(PAIRS)
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    letters = [ids_of("A")[0], ids_of("B")[0]]
    for pair, verdict in zip(PAIRS, verdicts, strict=True):
        question = pair.prompt if isinstance(pair.prompt, str) else pair.prompt[0]["content"]
        context = f"\n\n<turn> user\n {question}\n"
        text = f"[CONTEXT] {context} [RESPONSE A] {pair.first} [RESPONSE B] {pair.second} \n"
        ids = ids_of(f"[user]{text}</s>[assistant]")
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double()
        expected = logits[letters].softmax(0)[0].item()
        assert verdict.probability == pytest.approx(expected, abs=FLOAT32)
        np.testing.assert_allclose(verdict.raw["logits"], logits[letters].numpy(), atol=FLOAT32)
    assert verdicts[0].probability == pytest.approx(verdicts[3].probability, abs=FLOAT32)
    (judged,) = judge_responses(judge, ["why?"], [["because", "no idea, but it may be so"]])
    first, second = (float(v.probability or 0) for v in verdicts[:2])
    assert judged.wins[0][1] == pytest.approx((first + 1 - second) / 2, abs=2 * FLOAT32)


def test_pair_lm_with_absolute_positions(save: Save) -> None:
    """Rows padded on the left count their positions from their first token."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 259, "n_positions": 256}
        model = GPT2LMHeadModel(GPT2Config(**shape, initializer_range=0.2, eos_token_id=1, bos_token_id=0))
    folder = str(save(model=model))
    together = PairLMConfig(path=folder).build("cpu").compare(PAIRS)
    alone = PairLMConfig(path=folder, batch_size=1).build("cpu").compare(PAIRS)
    logits = [[verdict.raw["logits"] for verdict in verdicts] for verdicts in (together, alone)]
    np.testing.assert_allclose(logits[0], logits[1], atol=5 * FLOAT32)


def test_pair_lm_settings(save: Save) -> None:
    folder = save()
    own = PairLMConfig(path=str(folder), context="{{ messages[0]['content'] }}", template="{context}|{first}|{second}")
    judge: Any = own.build("cpu")
    judge.ready()
    pair = Pair("{x}", "{first}", "b")
    assert judge.encode(pair) == ids_of("[user]{x}|{first}|b</s>[assistant]")
    kept: Any = PairLMConfig(path=str(folder), begin_token=True, max_length=40).build("cpu")
    kept.ready()
    assert kept.encode(pair)[0] == 0
    (verdict,) = kept.compare([pair])
    assert verdict.probability is None
    assert verdict.raw == {"abstained": f"{len(kept.encode(pair))} tokens, more than 40"}
    with pytest.raises(ValueError, match="the label 'yes' is 3 tokens"):
        PairLMConfig(path=str(folder), first_label="yes").build("cpu").compare([pair])
    with pytest.raises(ValueError, match="no chat template"):
        PairLMConfig(path=str(save("plain", template=None))).build("cpu").compare([pair])
    with pytest.raises(ValueError, match=r"judge.template is '\{context\}\{first\}'"):
        PairLMConfig(path="x", template="{context}{first}")


# A reward model.


@pytest.mark.parametrize("template", [None, "Q: {prompt}\nA: {response}</s>"])
def test_reward_model_is_bradley_terry(save: Save, template: str | None) -> None:
    from transformers import LlamaForSequenceClassification

    folder = save(model=classifier())
    judge = RewardModelConfig(path=str(folder), batch_size=2, template=template).build("cpu")
    verdicts = judge.compare(PAIRS)
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()

    def reward(prompt: Any, response: str) -> float:
        question = prompt if isinstance(prompt, str) else prompt[0]["content"]
        chat = f"[user]{question}</s>[assistant]{response}</s>"
        ids = [0, *ids_of(chat if template is None else template.format(prompt=question, response=response))]
        with torch.no_grad():
            return float(model(torch.tensor([ids])).logits)

    for pair, verdict in zip(PAIRS, verdicts, strict=True):
        first, second = reward(pair.prompt, pair.first), reward(pair.prompt, pair.second)
        np.testing.assert_allclose(verdict.raw["rewards"], [first, second], atol=FLOAT32)
        assert verdict.probability == pytest.approx(1 / (1 + np.exp(second - first)), abs=FLOAT32)
    assert judge.antisymmetric
    probabilities = [float(v.probability or 0) for v in verdicts]
    assert probabilities[0] + probabilities[1] == pytest.approx(1, abs=1e-15)
    assert abs(probabilities[0] - 0.5) > 1e-3


def test_each_response_is_read_once(save: Save) -> None:
    judge: Any = RewardModelConfig(path=str(save(model=classifier())), max_length=30).build("cpu")
    read: list[int] = []
    judge.ready()
    inner = judge.read
    judge.read = lambda rows: (read.append(len(rows)), inner(rows))[1]
    (judged,) = judge_responses(judge, ["?"], [["a", "b", "c", "a", "much too long for it"]])
    assert read == [3]
    assert judged.wins[0][3] == 0.5
    assert [p is None for p in judged.wins[4]] == [True, True, True, True, False]


def test_what_is_no_reward_model_is_refused(save: Save) -> None:
    pair = PAIRS[:1]
    with pytest.raises(ValueError, match="is no reward model: its checkpoint lacks score.weight"):
        RewardModelConfig(path=str(save("causal"))).build("cpu").compare(pair)
    with pytest.raises(ValueError, match="has 3 labels; a Bradley-Terry reward model has one"):
        RewardModelConfig(path=str(save("three", classifier(num_labels=3)))).build("cpu").compare(pair)
    with pytest.raises(ValueError, match="has no chat template; give judge.template"):
        RewardModelConfig(path=str(save("plain", classifier(), template=None))).build("cpu").compare(pair)
    (empty := save("x").parent / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no config.json; reward_model needs a folder of a model"):
        RewardModelConfig(path=str(empty)).build("cpu").check()


def test_weights_are_known_by_their_content(save: Save) -> None:
    one, same, other = save("one", classifier(0)), save("same", classifier(0)), save("other", classifier(1))
    about = [RewardModelConfig(path=str(folder)).build("cpu").describe() for folder in (one, same, other)]
    assert about[0] == about[1] != about[2]
    assert RewardModelConfig(path=str(one), dtype="bfloat16").build("cpu").describe() != about[0]
    assert json.loads(json.dumps(about)) == about


def test_half_precision_and_closing(save: Save) -> None:
    judge: Any = RewardModelConfig(path=str(save(model=classifier())), dtype="bfloat16").build("cpu")
    (before,) = judge.compare(PAIRS[:1])
    assert next(judge.model.parameters()).dtype == torch.bfloat16
    assert not judge.model.training
    judge.close()
    assert judge.model is None
    assert judge.compare(PAIRS[:1]) == [before]


# Training one.


def counting_pairs(count: int, seed: int) -> list[dict[str, Any]]:
    """The response with more a's wins."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        few, many = sorted(rng.choice(9, 2, replace=False))
        texts = ["".join(rng.permutation(list("a" * n + "b" * (8 - n)))) for n in (few, many)]
        rows.append({"prompt": "count", "chosen": texts[1], "rejected": texts[0]})
    return rows


def test_training_a_reward_model(save: Save, tmp_path: Path) -> None:
    """Held-out accuracy after 60 steps; a judge that guessed would exceed 0.7 on 100 pairs with probability 2e-5."""
    start, target = save(), tmp_path / "reward"
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(start)
    training = RewardTraining(epochs=3, batch_size=16, learning_rate=3e-3, template="{prompt}: {response}</s>")
    pairs = counting_pairs(320, 0)
    steps: list[tuple[int, int]] = []
    report = train_reward_model(
        start, tokenizer, pairs, target, training, progress=lambda done, total: steps.append((done, total))
    )
    assert (report.pairs, report.too_long, len(report.losses)) == (320, 0, 60)
    assert steps[-1] == (60, 60)
    assert report.losses[0] == pytest.approx(np.log(2), abs=0.1)
    judge = RewardModelConfig(path=str(target)).build("cpu")  # the template is found in config.json
    assert pair_accuracy(judge, counting_pairs(100, 1)) > 0.7
    explicit = RewardModelConfig(path=str(target), template=training.template).build("cpu")
    assert judge.compare(PAIRS) == explicit.compare(PAIRS)
    again = tmp_path / "again"
    torch.rand(1)  # another state of the global generator
    assert train_reward_model(start, tokenizer, pairs, again, training) == report
    assert (again / "model.safetensors").read_bytes() == (target / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="exists already"):
        train_reward_model(start, tokenizer, pairs, target, training)
    with pytest.raises(ValueError, match=r"was trained with '\{prompt\}: \{response\}</s>': leave it out"):
        RewardModelConfig(path=str(target), template="{prompt}{response}").build("cpu").compare(PAIRS[:1])


def test_the_loss_of_soft_labels(save: Save, tmp_path: Path) -> None:
    """With learning rate 0 the loss is −p log σ(Δ) − (1 − p) log σ(−Δ) at the start's rewards."""
    from transformers import AutoTokenizer

    start = save(model=classifier(attention_dropout=0.0))
    tokenizer = AutoTokenizer.from_pretrained(start)
    pairs = [{"prompt": "x", "chosen": "a", "rejected": "bbb", "chosen_probs": 0.8}]
    long = {"prompt": "x", "chosen": "a" * 100, "rejected": "b"}
    training = RewardTraining(learning_rate=0.0, max_length=64)
    report = train_reward_model(start, tokenizer, [*pairs, long], tmp_path / "reward", training)
    assert (report.pairs, report.too_long) == (1, 1)
    (verdict,) = RewardModelConfig(path=str(start)).build("cpu").compare([Pair("x", "a", "bbb")])
    p = float(verdict.probability or 0)
    expected = -0.8 * np.log(p) - 0.2 * np.log(1 - p)
    assert report.losses == [pytest.approx(expected, abs=FLOAT32)]
    with pytest.raises(ValueError, match="none of 1 pairs has two responses of at most 64 tokens"):
        train_reward_model(start, tokenizer, [long], tmp_path / "none", training)
    with pytest.raises(ValueError, match="pair 0: chosen_probs is 1.5"):
        train_reward_model(start, tokenizer, [{**pairs[0], "chosen_probs": 1.5}], tmp_path / "none", training)


# General preference embeddings.


def gpm_folder(save: Save, tiny_llama: Callable[..., Any], blocks: int = 2, prompt_head: bool = True) -> Path:
    """A causal LM's checkpoint with the heads among its tensors, as published."""
    from safetensors.torch import load_file, save_file

    folder = save(model=tiny_llama(initializer_range=0.2))
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    tensors["value_head.weight"] = torch.randn(2 * blocks, 32, generator=generator)
    if prompt_head:
        tensors["prompt_head.weight"] = torch.randn(blocks, 32, generator=generator)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("prompt_head", [False, True])
def test_gpm_is_the_published_form(save: Save, tiny_llama: Callable[..., Any], prompt_head: bool) -> None:
    """v(a)ᵀ Rᵀ v(b) with R block-diagonal of [[0, −λ], [λ, 0]], over τ; embeddings of length 1 at the end token.

    Tolerance: float32 over τ = 0.1.
    """
    from safetensors.torch import load_file
    from transformers import LlamaModel

    folder = gpm_folder(save, tiny_llama, prompt_head=prompt_head)
    judge = GPMConfig(path=str(folder), batch_size=3).build("cpu")
    verdicts = judge.compare(PAIRS)
    model = LlamaModel.from_pretrained(folder).eval()
    heads = load_file(folder / "model.safetensors")

    def hidden(text: str, end: bool) -> Any:
        ids = [0, 0, *ids_of(text)]  # the tokenizer's begin token and the template's
        with torch.no_grad():
            return model(torch.tensor([ids[:-1] + [1] if end else ids])).last_hidden_state[0, -1].double()

    for pair, verdict in zip(PAIRS, verdicts, strict=True):
        question = pair.prompt if isinstance(pair.prompt, str) else pair.prompt[0]["content"]
        v = [
            heads["value_head.weight"].double() @ hidden(f"[user]{question}</s>[assistant]{response}</s>", True)
            for response in (pair.first, pair.second)
        ]
        v = [x / x.norm() for x in v]
        weights = torch.ones(2).double()
        if prompt_head:
            weights = (heads["prompt_head.weight"].double() @ hidden(f"[user]{question}</s>", False)).softmax(0)
        R = torch.zeros(4, 4).double()
        for k in range(2):
            R[2 * k, 2 * k + 1], R[2 * k + 1, 2 * k] = -weights[k], weights[k]
        score = float(v[0] @ R.T @ v[1])
        assert verdict.raw["score"] == pytest.approx(score, abs=FLOAT32)
        assert verdict.probability == pytest.approx(1 / (1 + np.exp(-score / 0.1)), abs=10 * FLOAT32)
    assert abs(verdicts[0].raw["score"]) > 1e-3


def test_gpm_is_skew_to_the_last_bit(save: Save, tiny_llama: Callable[..., Any]) -> None:
    judge = GPMConfig(path=str(gpm_folder(save, tiny_llama))).build("cpu")
    forward, backward = judge.compare(PAIRS[:2])
    assert forward.raw["score"] == -backward.raw["score"] != 0
    assert judge.antisymmetric
    generator = torch.Generator().manual_seed(0)
    v, w = (torch.randn(100, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    weights = torch.rand(100, 3, generator=generator, dtype=torch.float64)
    assert torch.equal(preference_score(v, w, weights), -preference_score(w, v, weights))
    assert torch.equal(preference_score(v, v, weights), torch.zeros(100, dtype=torch.float64))


def test_gpm_can_hold_a_cycle() -> None:
    """Three embeddings at 120° of each other: each beats the next one with score sin 120°."""
    angles = torch.arange(3, dtype=torch.float64) * 2 * torch.pi / 3
    v = torch.stack([angles.cos(), angles.sin()], -1)
    scores = preference_score(v, v.roll(-1, 0), torch.ones(3, 1))
    torch.testing.assert_close(scores, torch.full((3,), 0.75**0.5, dtype=torch.float64))


def test_what_is_no_gpm_checkpoint_is_refused(save: Save, tiny_llama: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"its safetensors hold no value_head.weight"):
        GPMConfig(path=str(save("plain"))).build("cpu").compare(PAIRS[:1])
    from safetensors.torch import load_file, save_file

    folder = gpm_folder(save, tiny_llama)
    tensors = load_file(folder / "model.safetensors")
    tensors["value_head.weight"] = torch.zeros(3, 32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"value_head.weight is \(3, 32\); it must be \(2m, 32\)"):
        GPMConfig(path=str(folder)).build("cpu").compare(PAIRS[:1])
    with pytest.raises(ValueError, match="judge.tau is 0; it must be a positive number"):
        GPMConfig(path="x", tau=0)
