"""Watchword for its callers: the contract's generated code, a verifier and a client for their processes, guards, and the failures of calls."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from watchword.blocking import SyncClient as SyncClient
    from watchword.client import Client as Client
    from watchword.credentials import ClientCredentials as ClientCredentials
    from watchword.decisions import Decision as Decision
    from watchword.decisions import Outcome as Outcome
    from watchword.decisions import Subject as Subject
    from watchword.permissions import Permissions as Permissions
    from watchword.principal import Principal as Principal
    from watchword.threads import SyncTokenVerifier as SyncTokenVerifier
    from watchword.tokens import SubjectKind as SubjectKind
    from watchword.verifier import TokenVerifier as TokenVerifier
    from watchword.verifier import WhenStale as WhenStale

_HOMES = {
    "Client": "client",
    "ClientCredentials": "credentials",
    "Decision": "decisions",
    "Outcome": "decisions",
    "Permissions": "permissions",
    "Principal": "principal",
    "Subject": "decisions",
    "SubjectKind": "tokens",
    "SyncClient": "blocking",
    "SyncTokenVerifier": "threads",
    "TokenVerifier": "verifier",
    "WhenStale": "verifier",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, and no more: whoever wants the errors alone needs no grpc."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
