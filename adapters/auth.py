"""Who may read the metrics: the policies for `auth=`, and the request that a policy is given."""

from __future__ import annotations

from .api.accounts import HostUser
from .api.messages import Request
from .api.policies import Grant, Policy, basic, public, session, staff, token

__all__ = [
    "Grant",
    "HostUser",
    "Policy",
    "Request",
    "basic",
    "public",
    "session",
    "staff",
    "token",
]
