"""The tiny model: every response can be enumerated, texts and ids are one to one, games are intransitive and known."""

import subprocess
import sys
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from nashpo.llm.encoding import Encoder
from nashpo.llm.exact import MASS, enumerated_log_policy
from nashpo.llm.judges.table import TableJudge
from nashpo.llm.sampling import generate
from nashpo.llm.tiny import build_tiny, tiny_llama, tiny_tokenizer
from nashpo.llm.tiny_config import TinyModel, TinyWarmup
from nashpo.llm.tiny_game import LEADERS, tiny_games, tiny_target, write_tables
from nashpo.tabular.equilibrium import nash

TINY = TinyModel()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as it is saved."""
    path = tmp_path_factory.mktemp("tiny")
    build_tiny(TINY, path)
    write_tables(TINY, path)
    return path


@pytest.fixture(scope="module")
def loaded(folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer, loaded as any other."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("tiny", [TINY, TinyModel(symbols=2, length=4, prompts=3), TinyModel(symbols=6, length=1)])
def test_responses_are_counted_and_have_texts_of_their_own(tiny: TinyModel) -> None:
    assert tiny.n == len(tiny.completions) == len(set(tiny.completions)) == len(set(tiny.responses))
    assert max(len(ids) for ids in tiny.completions) == tiny.length
    for ids in tiny.completions:
        ended = tiny.end_id in ids
        assert ids.count(tiny.end_id) == ended
        assert ended == (ids[-1] == tiny.end_id)
        assert ended or len(ids) == tiny.length


def test_probabilities_of_all_responses_add_up_to_one(loaded: tuple[Any, Any]) -> None:
    """Asserted at run time to 1e-5 and normalized; without the last response the mass is seen to be missing."""
    model, _ = loaded
    found = enumerated_log_policy(model, TINY.prompt_ids, TINY.completions)
    assert found.shape == (TINY.prompts, TINY.n)
    np.testing.assert_allclose(np.exp(found).sum(-1), 1, rtol=0, atol=1e-12)
    assert np.exp(found).max() > 2 / TINY.n
    with pytest.raises(ValueError, match=r"12 enumerated responses to prompt \d have probability 0\.8"):
        enumerated_log_policy(model, TINY.prompt_ids, TINY.completions[:-1])
    assert MASS == 1e-5


def test_loaded_weights_are_the_seeds_own(loaded: tuple[Any, Any]) -> None:
    model, _ = loaded
    again, other = tiny_llama(TINY), tiny_llama(replace(TINY, seed=1))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not torch.equal(model.lm_head.weight, other.lm_head.weight)


def test_texts_and_ids_are_one_to_one(loaded: tuple[Any, Any]) -> None:
    """Also where a prompt and a response are put together without a space, as texts from elsewhere are."""
    _, tokenizer = loaded
    assert len(tokenizer) == TINY.symbols + 1
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == TINY.end_id
    assert tokenizer.bos_token_id is None
    for ids, text in zip(TINY.completions, TINY.responses, strict=True):
        decoded = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert decoded == text
        words = [i for i in ids if i != TINY.end_id]
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == words
    encoder = Encoder(tokenizer)
    for ids, text in zip(TINY.prompt_ids, TINY.prompt_texts, strict=True):
        assert encoder.prompt(text) == list(ids)
        scored, ended = encoder.response(text, list(ids), "red")
        assert (scored.ids, ended) == ((*ids, 0, TINY.end_id), True)


@pytest.mark.parametrize("symbols", [2, 3, 6])
@pytest.mark.parametrize("seed", range(5))
def test_no_prompt_begins_another_or_repeats_one_word(symbols: int, seed: int) -> None:
    """Their responses would share contexts, and no model could tell them apart."""
    prompts = TinyModel(symbols=symbols, prompts=3 if symbols == 2 else 9, seed=seed).prompt_ids
    assert not any(first == second[: len(first)] for first, second in permutations(prompts, 2))
    assert all(len(set(ids)) > 1 for ids in prompts)
    assert {len(ids) for ids in prompts} == {2, 3}


@pytest.mark.parametrize("seed", range(4))
def test_games_are_intransitive_with_the_equilibrium_that_is_told(seed: int) -> None:
    """No response is best, and the linear program finds the same mixture of three."""
    game, equilibria = tiny_games(replace(TINY, seed=seed))
    P = np.asarray(game.P)
    assert (P < 0.5).any(-1).all()
    np.testing.assert_allclose(equilibria.sum(-1), 1, rtol=0, atol=1e-12)
    assert ((equilibria > 0).sum(-1) == LEADERS).all()
    np.testing.assert_allclose(np.exp(nash(game).log_policy), equilibria, rtol=0, atol=1e-8)


def test_the_table_judge_plays_the_game(folder: Path) -> None:
    judge = TableJudge.read(folder / "game.json")
    np.testing.assert_allclose(judge.game.P, tiny_games(TINY)[0].P, rtol=0, atol=1e-15)
    assert all(judge.responses(prompt) == list(TINY.responses) for prompt in TINY.prompt_texts)
    lines = (folder / "prompts.jsonl").read_text().splitlines()
    assert lines == [f'{{"prompt": "{text}"}}' for text in TINY.prompt_texts]


def test_target_is_a_policy_with_a_floor() -> None:
    target = tiny_target(replace(TINY, warmup=TinyWarmup(concentration=0.5, uniform=0.3)))
    np.testing.assert_allclose(target.sum(-1), 1, rtol=0, atol=1e-12)
    assert target.min() >= 0.3 / TINY.n
    assert target.max() > 2 / TINY.n
    uniform = tiny_target(replace(TINY, warmup=TinyWarmup(uniform=1.0)))
    np.testing.assert_allclose(uniform, 1 / TINY.n, rtol=0, atol=1e-15)


def test_draws_are_from_the_enumerated_policy(loaded: tuple[Any, Any]) -> None:
    """χ² over two prompts of different lengths; fails by chance with probability 1e-4, for this seed never."""
    model, _ = loaded
    prompts = TINY.prompt_ids[:2]
    drawn = generate(model, prompts, 1500, TINY.length, 3, pad_id=TINY.end_id, eos_id=TINY.end_id)
    expected = 1500 * np.exp(enumerated_log_policy(model, prompts, TINY.completions))
    for row, wanted in zip(drawn, expected, strict=True):
        counts = np.array([row.count(ids) for ids in TINY.completions])
        assert counts.sum() == 1500
        rare = wanted < 5
        pooled = [np.append(x[~rare], x[rare].sum()) if rare.any() else x for x in (counts, wanted)]
        assert chisquare(*pooled).pvalue > 5e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"symbols": 7}, "symbols = 7 must be 2 to 6"),
        ({"length": 0}, "length = 0 must be at least 1"),
        ({"symbols": 6, "length": 4}, "1555 responses per prompt"),
        ({"symbols": 2, "length": 1}, "3 responses per prompt"),
        ({"prompts": 50}, "prompts = 50, but 3 symbols make"),
        ({"hidden_size": 12}, "hidden_size = 12 must be a multiple of 2 heads, 8"),
        ({"spread": 0.0}, "spread = 0.0 must be a number > 0"),
        ({"seed": -1}, "seed = -1 must be at least 0"),
    ],
)
def test_bad_settings_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TinyModel(**options)


def test_bad_warmup_settings_are_told() -> None:
    with pytest.raises(ValueError, match=r"warmup\.concentration = 0 must be a number > 0"):
        TinyWarmup(concentration=0)
    with pytest.raises(ValueError, match=r"warmup\.uniform = 0 must be in"):
        TinyWarmup(uniform=0)


def test_settings_and_games_are_read_without_torch() -> None:
    code = "import sys, nashpo.llm.tiny_config, nashpo.llm.tiny_game; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_tokenizer_pads_on_the_left() -> None:
    assert tiny_tokenizer(TINY).padding_side == "left"
