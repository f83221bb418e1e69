"""Writes a policy as a file that reads back as the same: sorted, and saying nothing that goes without saying."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import yaml

from watchword.policy.document import Binding, Effect, Expectation, Group, Owns, Policy, Role

HEAD = "# A policy of Watchword: see docs/policy-as-code.md. What is missing here is left alone, what is empty is emptied.\n"


def write(policy: Policy) -> str:
    """Return the text of a file."""
    parts = [_dump({"version": 1, "owns": _owns(policy.owns)}), *map(_dump, _sections(policy))]
    return HEAD + "\n".join(parts)


def rfc3339(instant: datetime) -> str:
    """Return an instant of UTC as text, with no more digits than it has."""
    return instant.isoformat().replace("+00:00", "Z")


def _sections(policy: Policy) -> Iterator[dict[str, Any]]:
    if policy.roles is not None:
        yield {"roles": {role.name: _role(role) for role in _by_name(policy.roles)}}
    if policy.groups is not None:
        yield {"groups": {group.name: _group(group) for group in _by_name(policy.groups)}}
    if policy.bindings is not None:
        yield {"bindings": [_binding(binding) for binding in sorted(policy.bindings, key=lambda one: one.order)]}
    if policy.resources is not None:
        yield {"resources": dict(sorted(policy.resources.items()))}
    if policy.expectations:
        yield {"expect": [_expectation(expectation) for expectation in policy.expectations]}


def _by_name(named: Mapping[str, Any]) -> list[Any]:
    return [named[name] for name in sorted(named)]


def _owns(owns: Owns) -> str | list[str]:
    words = [*(["all"] if owns.everything else []), *owns.prefixes]
    return words[0] if len(words) == 1 else words


def _role(role: Role) -> dict[str, Any]:
    return _said({"description": role.description, "permissions": list(role.permissions), "parents": list(role.parents)})


def _group(group: Group) -> dict[str, Any]:
    members = {} if group.members is None else {"members": list(group.members)}
    return {**_said({"description": group.description}), **members}


def _binding(binding: Binding) -> dict[str, Any]:
    return _said(
        {
            "subject": binding.subject,
            "role": binding.role,
            "resource": binding.resource,
            "effect": "deny" if binding.effect is Effect.DENY else "",
            "condition": binding.condition,
            "step_up": _said({"acr": binding.acr, "max_age": binding.max_age}),
            "expire_time": rfc3339(binding.expire_time) if binding.expire_time else "",
        }
    )


def _expectation(expectation: Expectation) -> dict[str, Any]:
    said = _said({"subject": expectation.subject, "permission": expectation.permission, "resource": expectation.resource})
    more = {} if expectation.context is None else {"context": dict(expectation.context)}
    age = {} if expectation.login_age is None else {"login_age": expectation.login_age}
    return {**said, **more, **_said({"acr": expectation.acr}), **age, "decision": str(expectation.decision)}


def _said(parts: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in parts.items() if value}


def _dump(part: dict[str, Any]) -> str:
    return yaml.safe_dump(part, sort_keys=False, allow_unicode=True, width=1000, default_flow_style=False)
