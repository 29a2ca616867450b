"""Where the page is served, and who may look: this machine, or whoever knows the password."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from pathlib import Path

from captum_learnprop.errors import LearnpropError


@dataclass(frozen=True)
class Server:
    """Where the page is served.

    Attributes:
        host: Address that is listened on.
        port: Port; None for the first that is free from 7860 on.
        password: What a browser must know; None for nothing, on this machine alone.
        images: A folder of pictures to train on.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    password: str | None = field(default=None, repr=False)
    images: Path | None = None

    def __post_init__(self) -> None:
        if not self.local and not self.password:
            raise LearnpropError(f"--host {self.host} lets other machines in: set a password with --password")

    @property
    def local(self) -> bool:
        """Whether only this machine is served."""
        return self.host in ("127.0.0.1", "localhost", "::1")

    def lets_in(self, name: str, given: str) -> bool:
        """Returns whether a password is the right one, whatever the name, in a time that says nothing of it."""
        return self.password is not None and hmac.compare_digest(given.encode(), self.password.encode())
