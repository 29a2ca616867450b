"""Who is looking: a visit for each open page, with a folder of its own that goes when the page is closed."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path

from captum_learnprop.web.offered import Offer
from captum_learnprop.web.visit import Visit

MOST = 32
"""Pages that are open at a time; the one that was longest not used is forgotten."""


class Visits:
    """The visits of a page, by a key that its session has.

    Args:
        offer: The models; a visit begins with the first.
        folder: Where visitors' files go.
    """

    def __init__(self, offer: Offer, folder: Path) -> None:
        self._offer, self._folder = offer, folder
        self._visits: OrderedDict[str, Visit] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Returns how many there are."""
        return len(self._visits)

    def of(self, key: str | None) -> Visit:
        """Returns the visit of a session, a new one where it has none."""
        key = key or ""
        with self._lock:
            if key not in self._visits:
                folder = Path(tempfile.mkdtemp(prefix="visit-", dir=self._folder))
                self._visits[key] = Visit(self._offer.model(self._offer.names[0]), folder)
            self._visits.move_to_end(key)
            gone = [self._visits.popitem(last=False)[1] for _ in range(len(self._visits) - MOST)]
        for one in gone:
            _end(one)
        return self._visits[key]

    def forget(self, key: str | None) -> None:
        """Ends a visit: its jobs are cancelled and its files are removed."""
        with self._lock:
            visit = self._visits.pop(key or "", None)
        if visit is not None:
            _end(visit)


def _end(visit: Visit) -> None:
    for job in visit.jobs.values():
        job.cancel()
    shutil.rmtree(visit.folder, ignore_errors=True)
