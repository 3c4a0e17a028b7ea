"""Addresses and keys of servers: what may be stored with the data, and what may not."""

from __future__ import annotations

import os
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit


def check_address(name: str, url: Any) -> None:
    """That an address can be kept with the data.

    Raises
    ------
    ValueError
        If it is no http(s) address, or holds a user, a password or a query, which may be secrets: it is not shown then.
    """
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"{name} is {url!r}; it must be the server's address, as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(f"{name} holds a user, a password or a query: put the key into api_key_env's variable")


def key_from(variable: str | None) -> str | None:
    """The key that an environment variable holds; None for no variable.

    Raises
    ------
    ValueError
        If the variable is not set, or holds what no header can.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(f"api_key_env names the environment variable {variable}, which is not set")
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"the environment variable {variable} holds letters that no HTTP header can")
    return key


def loopback(url: str) -> bool:
    """Whether an address is this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
