"""What commands print for programs."""

from __future__ import annotations

import json
import math
from typing import Any


def as_text(content: Any) -> str:
    """JSON that every reader takes: numbers that are none are null, and infinite ones the words inf and -inf."""
    return json.dumps(_plain(content), indent=2, allow_nan=False)


def _plain(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_plain(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None if math.isnan(content) else str(content)
    return content
