"""Who may import whom: core neither numpy nor torch, the tabular room no torch. Each in a fresh interpreter."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

BLOCK = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
"""

EVERY_MODULE_OF_CORE = """
import importlib, pkgutil
import nashpo.core
names = ["nashpo.core"] + [m.name for m in pkgutil.walk_packages(nashpo.core.__path__, "nashpo.core.")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""

A_RUN_WITHOUT_ARRAYS = """
from nashpo.core.rules import RULES, SPPO, ONPO
from nashpo.core.selfplay import self_play
from nashpo.core.tables import fingerprint, tables

class Words:
    def check(self, form): pass
    def start(self, origin): return origin
    def ask(self, key, payoff, policy, on): return f"P({policy})"
    def project(self, key, base, terms, on): return "+".join(p for _, p in base) + "".join(t.answer for t in terms)
    def mix(self, key, average, policy, count): return f"mean of {count + 1}"
    def forget(self, state): pass

state = self_play(ONPO(eta=0.5).form(), Words(), 2)
print(state.slots["current"].handle)
"""


def run(code: str, *blocked: str) -> str:
    """Standard output of the code in a new interpreter in which some packages cannot be imported."""
    program = f"BLOCKED = {blocked!r}\n{BLOCK}\n{code}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_block_blocks() -> None:
    for name in ("numpy", "torch"):
        with pytest.raises(AssertionError, match=f"{name} is blocked"):
            run(f"import {name}", "numpy", "torch")


def test_core_imports_neither_numpy_nor_torch() -> None:
    """All of it, the command line's switchboard included; array-api-compat itself imports without numpy."""
    modules = run(EVERY_MODULE_OF_CORE, "numpy", "torch", "scipy", "numba", "array_api_strict", "nashpo.tabular")
    tree = [path for path in (ROOT / "core").rglob("*.py") if path.name != "__init__.py"]
    packages = list((ROOT / "core").rglob("__init__.py"))
    assert int(modules) == len(tree) + len(packages)


def test_core_runs_without_numpy_and_torch() -> None:
    """Two iterations of ONPO on words: every name is read when DESIGN.md says."""
    said = run(A_RUN_WITHOUT_ARRAYS, "numpy", "torch")
    first = "startP(start)"
    assert said == f"{first}P({first}P(start))P({first}P(start))"


def test_tabular_does_not_import_torch() -> None:
    assert run("import nashpo.tabular; print('torch' in sys.modules)") == "False"
    assert run("import nashpo.tabular; print('works')", "torch") == "works"


def test_tabular_imports_heavy_packages_only_when_they_are_used() -> None:
    heavy = "print([name for name in ('numba', 'cvxpy', 'matplotlib', 'flint', 'joblib') if name in sys.modules])"
    assert run(f"import nashpo.tabular; {heavy}") == "[]"


def test_testing_needs_hypothesis_only_for_its_strategies() -> None:
    code = """
import nashpo.tabular.testing as testing
testing.check_rule
try:
    testing.games
except ModuleNotFoundError as error:
    print(error)
"""
    assert "pip install 'nashpo[test]'" in run(code, "hypothesis")
