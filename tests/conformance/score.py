"""Write docs/conformance.md: the kit's cases against this package and its peers, as a table.

    python tests/conformance/score.py           # writes docs/conformance.md
    python tests/conformance/score.py --print   # only shows it

Needs the peers: `pip install -e ".[dev,peers]"`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    import_module("conformance.scoring").main(sys.argv[1:])
