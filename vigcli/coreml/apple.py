"""The one door to coremltools, which off a Mac greets every import with a page of warnings; what to do with it is left
to the callers."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from types import ModuleType

from vigcli.errors import UnavailableError

INSTALL_HINT = "pip install 'vig[export]'"


def coremltools() -> ModuleType:
    """The coremltools module, imported on first use and in silence."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    # It logs 'Failed to load ...' once for every library that exists on a Mac only, and the versions it has not tested.
    logger.setLevel(logging.CRITICAL)
    # It imports scikit-learn, an eighth of an export, for conversions that are not ours; a None makes that fail.
    hidden = {name: None for name in ("sklearn",) if name not in sys.modules}
    sys.modules.update(hidden)  # type: ignore[arg-type]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("coremltools")
    except ModuleNotFoundError as error:
        if error.name != "coremltools":
            raise
        raise UnavailableError("coremltools is not installed.", INSTALL_HINT) from error
    finally:
        logger.setLevel(level)
        for name in hidden:
            del sys.modules[name]
