"""Reads a policy file: every error with its line, all at once."""

import graphlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC

import yaml

from watchword.decisions import Outcome
from watchword.policy.document import ANYBODY, GROUP, RESERVED, SECTIONS, Binding, Effect, Expectation, Group, Owns, Policy, Role
from watchword.policy.shapes import MAX_BYTES, MAX_ITEMS, is_uuid, misshapen
from watchword.policy.strict_yaml import FileInvalid, Node, Problem, Reader, compose, line_of

VERSION = "1"  # of the format
_BINDING = ("subject", "role", "resource", "effect", "condition", "step_up", "expire_time")
_EXPECTATION = ("subject", "permission", "resource", "context", "acr", "login_age", "decision")


def read(text: str) -> Policy:
    """Return what a file says. Raises FileInvalid."""
    file = _File(Reader())
    policy = file.policy(compose(text))
    problems = [*file.reader.problems, *([] if file.reader.problems else _contradictions(policy))]
    if problems:
        raise FileInvalid(problems)
    return policy


class _File:
    """Reads each part of a file."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def policy(self, node: Node) -> Policy:
        parts = self.reader.members(node, "a policy", ("version", "owns", *SECTIONS, "expect"), required=("version", "owns"))
        if "version" in parts:
            self.reader.choice(parts["version"], "version", [VERSION])
        entries = self.reader.entries
        places = self.resources(parts["resources"]) if "resources" in parts else None
        return Policy(
            owns=self.owns(parts["owns"]) if "owns" in parts else Owns(False),
            roles={name: self.role(name, key, value) for name, key, value in entries(parts["roles"], "roles")} if "roles" in parts else None,
            groups={name: self.group(name, key, value) for name, key, value in entries(parts["groups"], "groups")} if "groups" in parts else None,
            bindings=tuple(map(self.binding, self.reader.items(parts["bindings"], "bindings"))) if "bindings" in parts else None,
            resources=None if places is None else {name: parent for name, (parent, _) in places.items()},
            expectations=tuple(map(self.expectation, self.reader.items(parts["expect"], "expect"))) if "expect" in parts else (),
            resource_lines={name: line for name, (_, line) in (places or {}).items()},
        )

    def owns(self, node: Node) -> Owns:
        nodes = self.reader.items(node, "owns") if not isinstance(node, yaml.ScalarNode) else [node]
        words = [self.reader.text(one, "owns", shape="prefix") for one in nodes]
        return Owns("all" in words, tuple(sorted({word for word in words if word not in ("", "all")})))

    def role(self, name: str, key: Node, node: Node) -> Role:
        self._named(name, key, "a role")
        what = f"role {name}"
        parts = self.reader.members(node, what, ("description", "permissions", "parents"))
        return Role(
            name,
            self._description(parts, what),
            self._texts(parts, "permissions", what, "pattern"),
            self._texts(parts, "parents", what, "name"),
            line_of(key),
        )

    def group(self, name: str, key: Node, node: Node) -> Group:
        self._named(name, key, "a group")
        what = f"group {name}"
        parts = self.reader.members(node, what, ("description", "members"))
        members = self.reader.texts(parts["members"], f"members of {what}", self.member) if "members" in parts else None
        return Group(name, self._description(parts, what), members, line_of(key))

    def member(self, node: Node) -> str:
        found = self.subject(node)
        if found == ANYBODY:
            self.reader.note(node, "everybody is in no group: bind a role to * instead")
        return found

    def subject(self, node: Node) -> str:
        found = self.reader.text(node, "a subject")
        kind, _, name = found.partition(":")
        is_good = found == ANYBODY or (not misshapen("name", name) if kind == "group" else kind in ("user", "client") and is_uuid(name))
        if found and not is_good:
            self.reader.note(node, 'a subject must be user:ID, client:ID, group:NAME or "*", where an ID is a UUID in lower case')
        return found if is_good else ""

    def binding(self, node: Node) -> Binding:
        parts = self.reader.members(node, "a binding", _BINDING, required=("subject", "role"))
        effect = Effect(self.reader.choice(parts["effect"], "effect", list(Effect))) if "effect" in parts else Effect.ALLOW
        login = self.reader.members(parts["step_up"], "step_up", ("acr", "max_age")) if "step_up" in parts else {}
        if "step_up" in parts and effect is Effect.DENY:
            self.reader.note(parts["step_up"], "a binding that denies asks for no login")
        if "step_up" in parts and not login:
            self.reader.note(parts["step_up"], "step_up must say acr, max_age or both")
        end = self.reader.instant(parts["expire_time"], "expire_time") if "expire_time" in parts else None
        return Binding(
            subject=self.subject(parts["subject"]) if "subject" in parts else "",
            role=self._text(parts, "role", "name", MAX_BYTES["name"]),
            resource=self._text(parts, "resource", "resource", 256),
            effect=effect,
            condition=self._text(parts, "condition", "", MAX_BYTES["condition"]),
            acr=self._text(login, "acr", "", MAX_BYTES["acr"]),
            max_age=self.reader.seconds(login["max_age"], "max_age", least=1) if "max_age" in login else None,
            expire_time=None if end is None else end.astimezone(UTC),
            line=line_of(node),
        )

    def resources(self, node: Node) -> Mapping[str, tuple[str, int]]:
        found = dict[str, tuple[str, int]]()
        for name, key, value in self.reader.entries(node, "resources"):
            if wrong := misshapen("resource", name):
                self.reader.note(key, f"{name} must be {wrong}")
            found[name] = self.reader.text(value, f"the parent of {name}", shape="resource", max_bytes=256), line_of(key)
        return found

    def expectation(self, node: Node) -> Expectation:
        parts = self.reader.members(node, "an expectation", _EXPECTATION, required=("subject", "permission", "decision"))
        return Expectation(
            subject=self.subject(parts["subject"]) if "subject" in parts else "",
            permission=self._text(parts, "permission", "permission", 256),
            decision=Outcome(self.reader.choice(parts["decision"], "decision", list(Outcome))) if "decision" in parts else Outcome.DENY,
            resource=self._text(parts, "resource", "resource", 256),
            context=self.context(parts["context"]) if "context" in parts else None,
            acr=self._text(parts, "acr", "", MAX_BYTES["acr"]),
            login_age=self.reader.seconds(parts["login_age"], "login_age", least=0) if "login_age" in parts else None,
            line=line_of(node),
        )

    def context(self, node: Node) -> Mapping[str, object]:
        return {key: self.reader.anything(value, "context") for key, _, value in self.reader.entries(node, "context")}

    def _named(self, name: str, key: Node, what: str) -> None:
        if wrong := misshapen("name", name):
            self.reader.note(key, f"{what} must have {wrong}")

    def _description(self, parts: Mapping[str, Node], what: str) -> str:
        if "description" not in parts:
            return ""
        return self.reader.text(parts["description"], f"the description of {what}", max_bytes=MAX_BYTES["description"], may_be_empty=True)

    def _text(self, parts: Mapping[str, Node], key: str, shape: str, max_bytes: int) -> str:
        return self.reader.text(parts[key], key, shape=shape, max_bytes=max_bytes) if key in parts else ""

    def _texts(self, parts: Mapping[str, Node], key: str, what: str, shape: str) -> tuple[str, ...]:
        if key not in parts:
            return ()
        words = f"{key} of {what}"
        return self.reader.texts(parts[key], words, lambda item: self.reader.text(item, words, shape=shape), max_items=MAX_ITEMS[key])


def _contradictions(policy: Policy) -> Iterator[Problem]:
    """Yield what a file says that cannot be, though each part of it is well formed."""
    owns = policy.owns
    if not owns.everything and not owns.prefixes:
        yield Problem(0, "owns must say all, or the beginnings of the names that this file speaks for")
    for role in (policy.roles or {}).values():
        if role.name.startswith(RESERVED):
            yield Problem(role.line, f"role {role.name} is the suite's own, and no file's")
        elif not owns.covers_role(role.name):
            yield Problem(role.line, f"role {role.name} is not this file's, which owns {owns.words}")
    for group in (policy.groups or {}).values():
        if not owns.covers(group.name):
            yield Problem(group.line, f"group {group.name} is not this file's, which owns {owns.words}")
    yield from _strange_bindings(policy)
    for resource, line in policy.resource_lines.items():
        if not owns.covers(resource):
            yield Problem(line, f"resource {resource} is not this file's, which owns {owns.words}")
    roles, groups = policy.roles or {}, policy.groups or {}
    yield from _cycles("roles", {name: role.parents for name, role in roles.items()}, {name: role.line for name, role in roles.items()})
    nested = {name: _groups_in(group.members or ()) for name, group in groups.items()}
    yield from _cycles("groups", nested, {name: group.line for name, group in groups.items()})
    yield from _cycles("resources", {child: (parent,) for child, parent in (policy.resources or {}).items()}, policy.resource_lines)


def _strange_bindings(policy: Policy) -> Iterator[Problem]:
    lines = dict[Binding, int]()
    for binding in policy.bindings or ():
        if not policy.owns.covers(binding.role):
            yield Problem(binding.line, f"bindings of role {binding.role} are not this file's, which owns {policy.owns.words}")
        if binding in lines:
            yield Problem(binding.line, f"the same binding stands on line {lines[binding]}")
        lines.setdefault(binding, binding.line)


def _groups_in(members: Iterable[str]) -> list[str]:
    return [member.removeprefix(GROUP) for member in members if member.startswith(GROUP)]


def _cycles(what: str, above: Mapping[str, Iterable[str]], lines: Mapping[str, int]) -> Iterator[Problem]:
    try:
        graphlib.TopologicalSorter(above).prepare()
    except graphlib.CycleError as error:
        names = error.args[1]
        yield Problem(min(lines[name] for name in names), f"{what} make a cycle: {' → '.join(names)}")
