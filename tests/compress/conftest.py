"""What tests of compression share."""

from __future__ import annotations

import compressed
import pytest
import tiny


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> compressed.Made:
    pytest.importorskip("coremltools", exc_type=ImportError)
    return compressed.make(tiny.CONFIG, tmp_path_factory.mktemp("made"))
