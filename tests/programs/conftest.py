"""The ways to run that every program of this folder is tested in."""

from __future__ import annotations

import pytest
from comparing import Setting, settings

from torchswat.engine.loader import _load


@pytest.fixture(params=list(settings()), ids=str)
def setting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path) -> Setting:
    """Put one way to run into force, with a cache of measurements that is empty."""
    asked: Setting = request.param
    if asked.engine == "native" and _load()[0] is None:
        pytest.skip("the native engine is not built here (no compiler at installation)")
    monkeypatch.setenv("TORCHSWAT_ENGINE", asked.engine)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if asked.plan == "sparse":
        monkeypatch.setenv("TORCHSWAT_PLAN", "sparse")
    else:
        monkeypatch.delenv("TORCHSWAT_PLAN", raising=False)
    return asked
