"""Pushing the last iterate to the hub, which is an imitation here."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from nashpo.llm.loop.hub import push


class Hub:
    def __init__(self, calls: list[Any], refuse: bool = False) -> None:
        self.calls, self.refuse = calls, refuse

    def create_repo(self, name: str, **options: Any) -> Any:
        if self.refuse:
            raise RuntimeError("401 Client Error\nmore lines")
        self.calls.append((name, options))
        return SimpleNamespace(repo_id=f"me/{name}")

    def upload_folder(self, **options: Any) -> None:
        self.calls.append(options)


def test_the_last_iterate_is_pushed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: Hub(calls))
    folder = tmp_path / "iterations/002/model"
    folder.mkdir(parents=True)
    said: list[str] = []
    push(tmp_path, folder, {}, said.append)
    assert calls == []
    wanted = {"push_to_hub": True, "hub_model_id": "policy", "hub_private_repo": True}
    push(tmp_path, folder, wanted, said.append)
    push(tmp_path, folder, wanted, said.append)
    assert calls[0] == ("policy", {"private": True, "exist_ok": True})
    assert calls[1]["repo_id"] == "me/policy"
    assert calls[1]["folder_path"] == str(folder)
    assert len(calls) == 2
    assert said == [f"pushed {folder} to me/policy"]


def test_a_refusal_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: Hub([], refuse=True))
    with pytest.raises(ValueError, match=r"run is finished.*401 Client Error.*run the same command again") as caught:
        push(tmp_path, tmp_path / "m", {"push_to_hub": True}, print)
    assert "\n" not in str(caught.value)
