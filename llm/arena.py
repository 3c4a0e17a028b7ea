"""An arena: every pair of policies head to head on held-out prompts, its win matrix, Nash weights, exploitabilities.

Shapes: M policies, B prompts, K responses of each policy to each prompt; a pair of policies is compared on all K × K
pairs of responses to a prompt.

The folder of an arena holds

    arena.json            the results; their keys are documented at `nashpo.llm.arena_results.Results`
    wins.npy              the win matrix, (M, M) float64, as `nashpo solve` reads it
    arena.html            the same to look at
    judge_cache.jsonl     what the judge said
    samples/NAME-…/       responses, as in a run; NAME and a hash of all that they depend on
    judgements/A-B-…/     who won, as in a run
    lm_eval/NAME-…/       results of lm-eval, where it was asked for

Samples and judgements are phases: what was finished is never done again, also where policies are added, or another
judge is asked about the same responses.
"""

import io
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from nashpo.core.store import replace_file
from nashpo.figures.arena import write_arena_report
from nashpo.llm import leaderboard
from nashpo.llm.alpaca_eval import export, exportable
from nashpo.llm.arena_results import Played, Results, Terms, results
from nashpo.llm.engines.engine import Engine
from nashpo.llm.entrants import Entrant, Team
from nashpo.llm.judges.cache import Cache
from nashpo.llm.loop.conversing import ready_judge
from nashpo.llm.loop.judging import judge as judge_samples
from nashpo.llm.loop.lock import locked
from nashpo.llm.loop.messages import explained
from nashpo.llm.loop.phase import key_of, write_json
from nashpo.llm.loop.progress import Bars
from nashpo.llm.loop.sampling import NOT_IN_KEY, Samples, sample
from nashpo.llm.prompts import Prompt
from nashpo.llm.recipe.conversations import look
from nashpo.llm.standings import Array

RESULTS, WINS, REPORT, CACHE = "arena.json", "wins.npy", "arena.html", "judge_cache.jsonl"


def arena(
    teams: Sequence[Team],
    prompts: Sequence[Sequence[Prompt]],
    terms: Terms,
    out: Path,
    bars: Bars,
    alpaca: Path | None = None,
) -> Results:
    """Play every pair, and write the results into a folder.

    Parameters
    ----------
    teams : sequence of Team
    prompts : of each team, B Prompt
        The same texts in the same order, as each team's tokenizer reads them.
    terms : Terms
    out : path
        Of the arena; made where it is not there.
    bars : Bars
        Progress.
    alpaca : path, optional
        A folder for each policy's responses as AlpacaEval reads them.

    Raises
    ------
    ValueError
        What cannot work, before any long work; `RunStopped` where a phase failed; a pair that was never compared.
    """
    if alpaca is not None:
        exportable(prompts[0])
    if terms.harness is not None:
        terms.harness.check()
    with locked(out):
        played = play(teams, prompts, terms, out, bars)
        if alpaca is not None:
            export(alpaca, [entrant.label for entrant in played.entrants], played.prompts, played.samples)
        scores = None if terms.harness is None else _harness(teams, terms.harness, out)
        found = results(played, terms, scores)
        replace_file(out / WINS, _bytes(np.array(found["wins"], dtype=np.float64)))
        write_json(out / RESULTS, found)
        write_arena_report(dict(found), out / REPORT)
    return found


def play(teams: Sequence[Team], prompts: Sequence[Sequence[Prompt]], terms: Terms, out: Path, bars: Bars) -> Played:
    """Sample every policy and judge every pair; what was done before is read back."""
    entrants: list[Entrant] = []
    samples: list[Samples] = []
    with ExitStack() as held:
        ready_judge(terms.judge, terms.talk is not None)
        held.callback(terms.judge.close)
        engines = [team_engine(team, terms, asked) for team, asked in zip(teams, prompts, strict=True)]
        for engine in engines:
            held.callback(engine.close)
        cache = held.enter_context(Cache(out / CACHE))
        held.enter_context(bars)
        held.enter_context(explained(bars.where, out))
        for team, asked, engine in zip(teams, prompts, engines, strict=True):
            for entrant in team.entrants:
                about = {name: value for name, value in engine.describe().items() if name not in NOT_IN_KEY}
                key = key_of(entrant.weights, about, terms.seed, terms.sampling.shard, [p.key for p in asked])
                place = out / "samples" / f"{entrant.name}-{key[:12]}"
                samples.append(sample(place, engine, entrant, asked, terms.sampling.shard, terms.seed, bars)[0])
                entrants.append(entrant)
            engine.close()
            for entrant in team.entrants[:1]:
                entrant.policies.release()
        said = [key_of([[c.response for c in row] for row in drawn]) for drawn in samples]
        judged = {}
        for i, j in combinations(range(len(entrants)), 2):
            key = key_of(terms.judge.describe(), [p.key for p in prompts[0]], said[i], said[j])
            place = out / "judgements" / f"{entrants[i].name}-{entrants[j].name}-{key[:12]}"
            judged[i, j] = judge_samples(place, terms.judge, prompts[0], samples[i], samples[j], cache, bars)
        return Played(entrants, prompts[0], samples, judged, engines[0].describe())


def team_engine(team: Team, terms: Terms, prompts: Sequence[Prompt]) -> Engine:
    """The engine for a team's policies, checked; of conversations where they are compared."""
    talk, sampling = terms.talk, terms.sampling
    if talk is not None:
        look(talk.config, prompts, team.encoder)
        return talk.engine(sampling, team.context, team.encoder, team.positions, talk.config.alone(sampling.K))
    engine = sampling.build(team.context)
    engine.check()
    return engine


def _harness(teams: Sequence[Team], harness: leaderboard.Harness, out: Path) -> dict[str, Any]:
    """Results of lm-eval by policy."""
    found = {}
    with explained(lambda: "lm-eval", out):
        for team in teams:
            for entrant in team.entrants:
                key = key_of("lm_eval", entrant.weights, harness.describe())
                place = out / "lm_eval" / f"{entrant.name}-{key[:12]}"
                lent = entrant.parts[0][1]
                found[entrant.label] = leaderboard.evaluate(place, key, harness, lent, team.context.tokenizer)
            for entrant in team.entrants[:1]:
                entrant.policies.release()
    return found


def _bytes(wins: Array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, wins)
    return buffer.getvalue()
