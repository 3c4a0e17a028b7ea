"""What the engines on servers share: how a server comes to the policy's weights, and the seeds of requests.

Times are in seconds.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nashpo.llm.engines.config import RemoteConfig
from nashpo.llm.engines.engine import PolicySource
from nashpo.llm.http import Client
from nashpo.llm.http_errors import Refused, ServerDown, Unanswered, WrongAnswer, member

FOLDER, NAME = "NASHPO_POLICY", "NASHPO_POLICY_NAME"
"""Environment variables of the command that brings weights to a server."""
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


def request_seed(seed: int, prompt_key: str, k: int, draw: int = 0) -> int:
    """Seed of the request for response k to a prompt, 31 bits, which every server takes.

    Parameters
    ----------
    draw : int
        Counts up where a response has to be drawn anew.
    """
    text = f"nashpo request 1\0{seed}\0{prompt_key}\0{k}\0{draw}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest()) >> 1


def client(config: RemoteConfig) -> Client:
    """The client of a server engine."""
    return Client(
        config.url,
        api_key_env=config.api_key_env,
        timeout=config.timeout,
        retries=config.retries,
        patience=config.patience,
        concurrency=config.concurrency,
    )


def models(client: Client, patience: float | None = None) -> dict[str, str]:
    """Names that the server lists, each with the folder or name of its weights where it tells them."""

    def read(answer: Any) -> dict[str, str]:
        entries = member(answer, "data", kind=list)
        names = [member(answer, "data", place, "id", kind=str) for place in range(len(entries))]
        return {name: str(entry.get("root") or name) for name, entry in zip(names, entries, strict=True)}

    return client.get("models", read, patience)


def version(client: Client) -> str | None:
    """The server's version where it has ``/version``, as vLLM; None elsewhere."""
    parts = urlsplit(client.url)
    try:
        return client.get(
            f"{parts.scheme}://{parts.netloc}/version", lambda answer: member(answer, "version", kind=str), patience=0.0
        )
    except (Refused, ServerDown, Unanswered, WrongAnswer):
        return None


class Weights:
    """Brings a policy's weights to the server, once per folder.

    Parameters
    ----------
    config : RemoteConfig
    client : Client
    """

    def __init__(self, config: RemoteConfig, client: Client) -> None:
        self.config = config
        self.client = client
        self._ready: dict[Path, str] = {}

    def name(self, policy: PolicySource) -> str:
        """The model name that a request for this policy must have; the server has the weights then.

        Raises
        ------
        ValueError
            If the policy has no folder (mixtures), or the weights did not get there.
        """
        folder = policy.folder().absolute()
        if folder not in self._ready:
            name = self._bring(folder, policy.name)
            self._ready = {folder: name}  # the one before may be gone from the server
        return self._ready[folder]

    def close(self) -> None:
        """Nothing is left behind on the server."""

    def _bring(self, folder: Path, name: str) -> str:
        raise NotImplementedError

    def _called(self, folder: Path) -> str:
        return self.config.model.replace("{policy}", str(folder))


class ByName(Weights):
    """The server loads what a request names."""

    def _bring(self, folder: Path, name: str) -> str:
        return self._called(folder)


class ByCommand(Weights):
    """A shell command is run, with the folder as ``{policy}`` and in the environment; its exit status must be 0.

    It may leave a server behind that runs on in the background. Where ``model`` has ``{policy}`` in it, the server is
    waited for until it lists that name; otherwise until it answers.
    """

    def _bring(self, folder: Path, name: str) -> str:
        command = (self.config.command() or "").replace("{policy}", shlex.quote(str(folder)))
        environment = {**os.environ, FOLDER: str(folder), NAME: name}
        # A file, not a pipe: a server in the background would hold the pipe open for ever.
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(
                command,
                shell=True,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            output.seek(0)
            words = output.read().decode("utf-8", "replace").split("\n")
        if done.returncode != 0:
            last = next((line.strip() for line in reversed(words) if line.strip()), "it printed nothing")
            raise ValueError(
                f"sampling.weights: the command {command!r} ended with status {done.returncode} ({last[:200]}); mend it"
                " and run the same command again"
            )
        called = self._called(folder)
        self._wait_for(called if called != self.config.model else None)
        return called

    def _wait_for(self, name: str | None) -> None:
        clock, sleep = self.client.waits.clock, self.client.waits.sleep
        until = clock() + self.config.patience
        while True:
            listed = models(self.client)
            if name is None or name in listed:
                return
            if clock() >= until:
                raise ValueError(
                    f"{self.client.url} lists the models {', '.join(listed) or '(none)'} and not {name}, although the"
                    " command of sampling.weights ended well: start the server under that name, or set sampling.model"
                )
            sleep(1.0)


class ByAdapter(Weights):
    """LoRA adapters are loaded through ``/load_lora_adapter`` as vLLM has it (VLLM_ALLOW_RUNTIME_LORA_UPDATING=1).

    An adapter's name is a hash of its files, so that a name stands for the same weights always. A folder without an
    adapter is the base model, and the server must say that it serves that folder.
    """

    def __init__(self, config: RemoteConfig, client: Client) -> None:
        super().__init__(config, client)
        self._loaded: list[str] = []

    def _bring(self, folder: Path, name: str) -> str:
        listed = models(self.client)
        if not all((folder / file).is_file() for file in _ADAPTER):
            return self._base(folder, listed)
        content = b"".join(hashlib.blake2b((folder / file).read_bytes()).digest() for file in _ADAPTER)
        called = f"nashpo-{hashlib.blake2b(content, digest_size=8).hexdigest()}"
        if called not in listed:
            try:
                self.client.tell("load_lora_adapter", {"lora_name": called, "lora_path": str(folder)})
            except Refused as error:
                raise ValueError(
                    f"{error}; sampling.weights is lora: start vLLM with --enable-lora, --max-lora-rank as large as the"
                    " adapter's, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
                ) from None
            self._loaded.append(called)
        return called

    def _base(self, folder: Path, listed: Mapping[str, str]) -> str:
        for called, root in listed.items():
            if str(folder) in (called, root) or Path(root).absolute() == folder:
                return called
        raise ValueError(
            f"sampling.weights is lora, but {folder} holds no adapter, and {self.client.url} does not serve it (but"
            f" {', '.join(listed.values()) or 'nothing'}): start the server on that folder, or use weights: command:..."
        )

    def close(self) -> None:
        """Unload the adapters."""
        for called in self._loaded:
            self.client.tell("unload_lora_adapter", {"lora_name": called})
        self._loaded, self._ready = [], {}


WEIGHTS: dict[str, type[Weights]] = {"by_name": ByName, "lora": ByAdapter, "command": ByCommand}
"""By the word before the colon of ``sampling.weights``."""


def weights(config: RemoteConfig, client: Client) -> Weights:
    """What brings the policies to the server of a recipe."""
    return WEIGHTS[config.weights.partition(":")[0]](config, client)
