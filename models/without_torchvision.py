"""Keeps transformers usable where torchvision was built for another torch: to be imported before transformers.

Nothing here needs torchvision, but transformers imports it wherever it is installed, and one that was compiled against
another torch (PyPI's beside the CPU's, say) fails then with `operator torchvision::nms does not exist`.
"""

import importlib
import sys

try:
    importlib.import_module("torchvision")
except ModuleNotFoundError:
    pass
except (RuntimeError, OSError, AttributeError, ImportError):
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    sys.modules["torchvision"] = None  # type: ignore[assignment]  # says "not installed" to whoever asks
