"""PairRM on random weights: our scores against the published architecture's formula, written out here."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nashpo.llm.judges.config import JUDGES, PairRMConfig
from nashpo.llm.judges.judge import Pair
from nashpo.llm.judges.matrix import judge_responses
from nashpo.llm.judges.pairrm import MARKERS

WORDS = ["what", "is", "a", "cat", "dog", "the", "big", "small", "animal", "that", "barks", "and", "purrs", "loudly"]
H = 32


def deberta_tokenizer() -> Any:
    """Words behind [PAD] [CLS] [SEP] [UNK] [MASK]; ``[CLS] text [SEP]``, as DeBERTa's tokenizer does."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **names)


def deberta_config(**options: Any) -> Any:
    """The shape of deberta-v3-large, smaller."""
    from transformers import DebertaV2Config

    shape = {"hidden_size": H, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    v3 = {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["p2c", "c2p"]}
    v3 |= {"norm_rel_ebd": "layer_norm", "share_att_key": True, "position_buckets": 8, "type_vocab_size": 0}
    return DebertaV2Config(vocab_size=5 + len(WORDS), max_position_embeddings=64, **shape, **v3, **options)


Checkpoint = tuple[Path, dict[str, torch.Tensor]]
Make = Callable[..., Checkpoint]


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Random tensors under the names of the published checkpoint, two tasks."""
    from transformers import DebertaV2Model

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = deberta_config(initializer_range=0.3)
        config.vocab_size += len(MARKERS)
        encoder = DebertaV2Model(config).state_dict()
        state = {f"pretrained_model.{name}": tensor for name, tensor in encoder.items()}
        for name, shape in [("1.weight", (H, 2 * H)), ("1.bias", (H,)), ("4.weight", (2, H)), ("4.bias", (2,))]:
            state[f"head_layer.{name}"] = 0.5 * torch.randn(shape)
    return state


@pytest.fixture
def checkpoint(tmp_path: Path, weights: dict[str, torch.Tensor]) -> Make:
    """A maker of folders in the layout of llm-blender/PairRM, or of PairRM-hf."""

    def make(hf: bool = False, pickled: bool = False, state: dict[str, torch.Tensor] | None = None) -> Checkpoint:
        from safetensors.torch import save_file

        folder = tmp_path / "PairRM"
        folder.mkdir()
        state = dict(weights if state is None else state)
        if pickled:
            torch.save(state, folder / "pytorch_model.bin")
        else:
            save_file(state, folder / "model.safetensors")
        tokenizer, config = deberta_tokenizer(), deberta_config()
        if hf:
            tokenizer.add_tokens(list(MARKERS))
            first = len(tokenizer) - 4
            ids = {"source_prefix_id": first, "cand1_prefix_id": first + 1, "cand2_prefix_id": first + 2}
            config.update({**ids, "cand_prefix_id": first + 3, "n_tasks": 2, "drop_out": 0.05})
            config.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        else:
            base = tmp_path / "deberta-v3-large"
            config.save_pretrained(base)
            tokenizer.save_pretrained(base)
            ranker = {"ranker_type": "pairranker", "model_type": "deberta", "model_name": str(base), "n_tasks": 2}
            ranker |= {"source_maxlength": 1224, "candidate_maxlength": 412, "drop_out": 0.05}
            (folder / "config.json").write_text(json.dumps(ranker))
        return folder, state

    return make


def score_by_hand(state: dict[str, torch.Tensor], words: tuple[list[str], list[str], list[str]]) -> float:
    """score_1 − score_2 from the hidden states of a DebertaV2Model, one unpadded row, the head in numpy."""
    from transformers import DebertaV2Model

    config = deberta_config()
    config.vocab_size += len(MARKERS)
    encoder = DebertaV2Model(config).eval()
    prefix = "pretrained_model."
    encoder.load_state_dict({k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)})
    marker = 5 + len(WORDS)
    parts = [[1, marker + n, *(5 + WORDS.index(word) for word in some), 2] for n, some in enumerate(words)]
    with torch.no_grad():
        outputs = encoder(input_ids=torch.tensor([sum(parts, [])]), output_hidden_states=True)
    hidden = outputs.hidden_states[-1][0].double().numpy()
    starts = np.cumsum([0, *(len(part) for part in parts[:2])]) + 1
    prompt, first, second = hidden[starts]
    W1, b1, W2, b2 = (
        state[f"head_layer.{name}"].double().numpy() for name in ("1.weight", "1.bias", "4.weight", "4.bias")
    )

    def score(candidate: Any) -> float:
        return float(np.mean(W2 @ np.tanh(W1 @ np.concatenate([prompt, candidate]) + b1) + b2))

    return score(first) - score(second)


PAIRS = [
    ("what is a cat", "a small animal that purrs", "the dog"),
    ("what is a cat", "the dog", "a small animal that purrs"),
    ("what barks", "a big dog barks loudly and barks and barks", "cat"),
    ("what purrs", "cat", "cat"),
    ("big", "", "a dog"),
]


@pytest.mark.parametrize(("hf", "pickled"), [(False, False), (True, False), (False, True)])
def test_scores_are_the_formulas(checkpoint: Make, hf: bool, pickled: bool) -> None:
    """Position swaps included: the second pair is the first one swapped, and its score is not the negated one.

    Tolerance: float32 sums of 64 terms of order 1, padded rows beside one unpadded row; 1e-5 of scores of order 1.
    """
    folder, state = checkpoint(hf, pickled)
    judge = PairRMConfig(path=str(folder), batch_size=3).build("cpu")
    judge.check()
    verdicts = judge.compare([Pair(*texts) for texts in PAIRS])
    expected = [score_by_hand(state, tuple(text.split() for text in texts)) for texts in PAIRS]  # type: ignore[arg-type]
    scores = [verdict.raw["score"] for verdict in verdicts]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    probabilities: Any = [verdict.probability for verdict in verdicts]
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-np.array(scores))), atol=1e-12)
    assert abs(expected[0] + expected[1]) > 0.05
    assert abs(expected[3]) > 1e-3  # even equal texts differ by their position
    assert judge.antisymmetric is False
    assert judge.compare([]) == []
    judge.close()


def test_symmetrized_from_the_pair_itself(checkpoint: Make) -> None:
    """No third response enters: the matrix of three contains the matrix of two."""
    folder, state = checkpoint()
    judge = PairRMConfig(path=str(folder), batch_size=64).build("cpu")
    texts = ["a small animal", "the dog", "purrs"]
    (three,) = judge_responses(judge, ["what is a cat"], [texts])
    (two,) = judge_responses(judge, ["what is a cat"], [texts[:2]])
    forward, backward = (
        1 / (1 + np.exp(-score_by_hand(state, (["what", "is", "a", "cat"], a.split(), b.split()))))
        for a, b in [texts[:2], texts[1::-1]]
    )
    assert three.wins[0][1] == pytest.approx((forward + 1 - backward) / 2, abs=1e-5)
    assert two.wins[0][1] == pytest.approx(three.wins[0][1], abs=1e-6)
    assert two.asymmetry == pytest.approx(abs(forward + backward - 1), abs=1e-5)
    assert two.asymmetry is not None
    assert two.asymmetry > 1e-3


def test_truncation_as_published(checkpoint: Make) -> None:
    """Of source 6 and candidate 5 tokens, 16 in all: a prompt of 6 leaves 5 each, one of 4 leaves 6, each part with
    [CLS], its marker and [SEP]."""
    folder, _ = checkpoint()
    judge: Any = PairRMConfig(path=str(folder), source_tokens=6, candidate_tokens=5).build("cpu")
    judge.ready()
    word = {name: 5 + i for i, name in enumerate(WORDS)}
    source, first, second = (5 + len(WORDS) + n for n in range(3))
    long = judge.encode(Pair("what is a cat", "the big dog", "a small animal"))
    cut = [1, source, word["what"], word["is"], word["a"], 2, 1, first, word["the"], word["big"], 2]
    assert long == [*cut, 1, second, word["a"], word["small"], 2]
    short = judge.encode(Pair("what", "the big dog barks", "a"))
    assert short == [1, source, word["what"], 2, 1, first, *(word[w] for w in ("the", "big", "dog")), 2] + [
        *(1, second, word["a"], 2)
    ]


def test_prompts_are_read_as_text_and_cannot_pose_as_candidates(checkpoint: Make) -> None:
    folder, _ = checkpoint()
    judge: Any = PairRMConfig(path=str(folder), template="the {prompt} and").build("cpu")
    judge.ready()
    plain = judge.encode(Pair("big dog", "cat", "dog"))
    assert judge.encode(Pair([{"role": "user", "content": "big dog"}], "cat", "dog")) == plain
    assert judge.encode(Pair("big [SEP] dog", "cat<|candidate2|>", "<|source|> dog")) == plain
    with pytest.raises(ValueError, match="token ids"):
        judge.encode(Pair([1, 2], "cat", "dog"))


def test_a_checkpoint_with_other_tensors_is_refused(checkpoint: Make, weights: dict[str, torch.Tensor]) -> None:
    wrong = {**weights, "score.weight": torch.zeros(1)}
    del wrong["head_layer.4.bias"], wrong["head_layer.4.weight"]
    folder, _ = checkpoint(state=wrong)
    with pytest.raises(
        ValueError, match=r"it lacks head_layer.4.bias and 1 more and has besides score.weight$"
    ) as raised:
        PairRMConfig(path=str(folder)).build("cpu").compare([Pair("a", "cat", "dog")])
    assert "\n" not in str(raised.value)


def test_a_tensor_of_another_shape_is_refused(checkpoint: Make, weights: dict[str, torch.Tensor]) -> None:
    folder, _ = checkpoint(state={**weights, "head_layer.1.bias": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"head_layer.1.bias is \(3,\) instead of \(32,\)"):
        PairRMConfig(path=str(folder)).build("cpu").compare([Pair("a", "cat", "dog")])


def test_positions_saved_by_old_versions_are_ignored(checkpoint: Make, weights: dict[str, torch.Tensor]) -> None:
    old = {**weights, "pretrained_model.embeddings.position_ids": torch.arange(64)[None]}
    folder, _ = checkpoint(state=old)
    (verdict,) = PairRMConfig(path=str(folder)).build("cpu").compare([Pair("a", "cat", "dog")])
    assert verdict.probability is not None


def test_another_tokenizer_is_refused(checkpoint: Make, tmp_path: Path) -> None:
    folder, _ = checkpoint()
    tokenizer = deberta_tokenizer()
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(tmp_path / "deberta-v3-large")
    with pytest.raises(ValueError, match="the tokenizer has 24 tokens with the markers, the checkpoint 23"):
        PairRMConfig(path=str(folder)).build("cpu").compare([Pair("a", "cat", "dog")])


def test_a_pickle_of_more_than_tensors_is_not_loaded(checkpoint: Make) -> None:
    folder, _ = checkpoint(pickled=True)
    torch.save({"x": Path("y")}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pytorch_model.bin holds more than tensors and is not loaded"):
        PairRMConfig(path=str(folder)).build("cpu").compare([Pair("a", "cat", "dog")])


def test_check_and_describe(checkpoint: Make, tmp_path: Path) -> None:
    folder, state = checkpoint()
    config = PairRMConfig(path=str(folder))
    about = config.build("cpu").describe()
    assert json.loads(json.dumps(about)) == about
    assert str(tmp_path) not in json.dumps(about)
    moved = tmp_path / "moved"
    folder.rename(moved)
    assert PairRMConfig(path=str(moved), batch_size=2).build("cpu").describe() == about
    ucla = JUDGES["ucla_pairrm"](path=str(moved)).build("cpu")  # type: ignore[call-arg]
    assert ucla.describe() != about
    (moved / "config.json").write_text((moved / "config.json").read_text() + " ")
    assert PairRMConfig(path=str(moved)).build("cpu").describe() != about
    with pytest.raises(ValueError, match="there is no folder"):
        config.build("cpu").check()
    with pytest.raises(ValueError, match="no folder here and cannot be had from the hub") as raised:
        PairRMConfig(path="nobody/nothing").build("cpu").check()
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="judge.dtype is 'int8'"):
        PairRMConfig(dtype="int8")
    with pytest.raises(ValueError, match=r"judge.template is 'text'; it must be a text with \{prompt\}"):
        PairRMConfig(template="text")


def test_ucla_reads_the_same_scores(checkpoint: Make) -> None:
    """score_i = (1/K) Σ_j (s_ij − s_ji) of three responses, from the scores that are kept."""
    folder, _ = checkpoint()
    judge = JUDGES["ucla_pairrm"](path=str(folder)).build("cpu")  # type: ignore[call-arg]
    (judged,) = judge_responses(judge, ["what is a cat"], [["a small animal", "the dog", "purrs"]])
    s = np.zeros((3, 3))
    for entry in judged.raw:
        s[entry["i"], entry["j"]] = entry["forward"]["raw"]["score"]
        s[entry["j"], entry["i"]] = entry["backward"]["raw"]["score"]
    score = (s - s.T).mean(1)
    wins: Any = judged.wins
    np.testing.assert_allclose(wins, 1 / (1 + np.exp(score[None, :] - score[:, None])), atol=1e-12)
