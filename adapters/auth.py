"""Who may read the metrics: the policies for `auth=`, and the request that a policy is given."""

from __future__ import annotations

from .api.messages import Request
from .api.policies import Grant, Policy, basic, public, session, token

__all__ = ["Grant", "Policy", "Request", "basic", "public", "session", "token"]
