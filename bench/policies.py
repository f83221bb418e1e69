"""A policy of any size, by arithmetic: who holds what where is the same each time, so questions are known with their answers.

One large tenant, and small ones of a hundred bindings each, one for every thousand bindings in all. In the large one:

* Users hold ten bindings each: tenant-wide, at documents, at folders, at projects; every hundredth part of all bindings is a group's.
* A hundred users share a chain of groups, five deep; they are in the innermost.
* Roles come in departments of ten, three of them deep; a chain and its users hold roles of one department.
* Documents lie in folders, folders in projects.
* Somewhat more than half of the users hold the role `staff`, which says nothing that is asked about.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar
from uuid import UUID

from watchword.rbac.v1 import permission_pb2, policy_pb2, rbac_pb2

PER_CHUNK = 10_000  # members of an import's message
SMALL_BINDINGS, SMALL_USERS = 100, 10  # of a small tenant
PER_USER, PER_CHAIN, DEEP, DEPARTMENT = 10, 100, 5, 10
PER_FOLDER, FOLDERS_PER_PROJECT = 150, 10
STAFF, READER = "staff", "reader"
READS = "doc.read"  # what READER grants, at one folder a user

T = TypeVar("T")
Chunk = policy_pb2.ImportPolicyRequest


def user_id(number: int) -> str:
    """Return the id of a user: spread over the index, as ids that others choose are."""
    return str(UUID(hashlib.md5(f"user/{number}".encode(), usedforsecurity=False).hexdigest()))


@dataclass(frozen=True, slots=True)
class Shape:
    """How much there is of everything, for so many bindings in all."""

    bindings: int

    @property
    def tenants(self) -> int:
        """How many, the large one included."""
        return max(1, self.bindings // 1000)

    @property
    def large(self) -> int:
        """Bindings of the large tenant."""
        return self.bindings - SMALL_BINDINGS * (self.tenants - 1)

    @property
    def users(self) -> int:
        """Of the large tenant."""
        return self.large // PER_USER

    @property
    def askable(self) -> int:
        """Users of whom `question` knows the answer: those of whole chains."""
        return self.users // PER_CHAIN * PER_CHAIN

    @property
    def chains(self) -> int:
        """Of groups."""
        return -(-self.users // PER_CHAIN)

    @property
    def departments(self) -> int:
        """Of roles."""
        return max(1, self.users // (10 * DEPARTMENT))

    @property
    def folders(self) -> int:
        """Ten at least."""
        return max(FOLDERS_PER_PROJECT, self.users // PER_FOLDER)

    @property
    def staff(self) -> int:
        """How many hold STAFF."""
        return sum(map(self.is_staff, range(self.users)))

    @property
    def words(self) -> str:
        """What it is, for people."""
        users, roles = self.users + SMALL_USERS * (self.tenants - 1), self.departments * DEPARTMENT + 2 + self.tenants - 1
        return f"{self.bindings:,} bindings, {users:,} users, {roles:,} roles, groups {DEEP} deep, {self.tenants:,} tenants"

    def is_staff(self, user: int) -> bool:
        """Whether `user` holds STAFF."""
        return user % 9 < 5

    def chunks(self) -> Iterator[policy_pb2.ImportPolicyRequest]:
        """Yield the large tenant as an import takes it."""
        for roles in _parts(self._roles()):
            yield Chunk(roles=roles)
        for groups in _parts(self._groups()):
            yield Chunk(groups=groups)
        for members in _parts(self._members()):
            yield Chunk(members=members)
        for places in _parts(self._places()):
            yield Chunk(resources=places)
        for bindings in _parts(self._bindings()):
            yield Chunk(bindings=bindings)

    def question(self, user: int, turn: int = 0) -> permission_pb2.CheckPermissionRequest:
        """Return what `user` may do, but only by the outermost of five groups, by a role's parent, and two resources above the one asked about.

        turn  another document of the same folder for each, below PER_FOLDER
        """
        chain = user // PER_CHAIN
        folder = self._project(chain) * FOLDERS_PER_PROJECT
        return permission_pb2.CheckPermissionRequest(
            subject=_user(user), permission=f"d{self._department(chain)}-1.write", resource=f"doc/{folder * PER_FOLDER + (user + turn) % PER_FOLDER}"
        )

    def batch(self, users: Iterable[int], turn: int = 0) -> permission_pb2.BatchCheckPermissionsRequest:
        """Return the questions of `users`."""
        return permission_pb2.BatchCheckPermissionsRequest(requests=[self.question(user, turn) for user in users])

    def lookup(self, user: int, page_size: int) -> permission_pb2.LookupResourcesRequest:
        """Return the question which documents `user` may read: those of one folder, of which there are PER_FOLDER."""
        return permission_pb2.LookupResourcesRequest(subject=_user(user), permission=READS, resource_type="doc", page_size=page_size)

    def _department(self, chain: int) -> int:
        return chain % self.departments

    def _project(self, number: int) -> int:
        return number % (self.folders // FOLDERS_PER_PROJECT)

    def _roles(self) -> Iterator[policy_pb2.ImportedRole]:
        yield policy_pb2.ImportedRole(name=STAFF, permissions=["canteen.enter"])
        yield policy_pb2.ImportedRole(name=READER, permissions=[READS])
        for department in range(self.departments):
            for rank in range(DEPARTMENT):
                kind, parents = f"d{department}-{rank}", [f"r{department}-{(rank - 1) // 3}"] if rank else []
                yield policy_pb2.ImportedRole(
                    name=f"r{department}-{rank}", permissions=[f"{kind}.read", f"{kind}.write", f"{kind}.delete"], parents=parents
                )

    def _groups(self) -> Iterator[policy_pb2.ImportedGroup]:
        for chain in range(self.chains):
            for level in range(DEEP):
                yield policy_pb2.ImportedGroup(name=f"g{chain}-{level}")

    def _members(self) -> Iterator[policy_pb2.ImportedMember]:
        for chain in range(self.chains):
            for level in range(1, DEEP):
                yield policy_pb2.ImportedMember(group=f"g{chain}-{level}", member_group=f"g{chain}-{level - 1}")
        for user in range(self.users):
            yield policy_pb2.ImportedMember(group=f"g{user // PER_CHAIN}-0", member=_user(user))

    def _places(self) -> Iterator[policy_pb2.ImportedResource]:
        for folder in range(self.folders):
            yield policy_pb2.ImportedResource(resource=f"folder/{folder}", parent=f"project/{self._project(folder // FOLDERS_PER_PROJECT)}")
        for doc in range(self.folders * PER_FOLDER):
            yield policy_pb2.ImportedResource(resource=f"doc/{doc}", parent=f"folder/{doc // PER_FOLDER}")

    def _bindings(self) -> Iterator[policy_pb2.ImportedBinding]:
        for user in range(self.users):
            subject, chain = _user(user), user // PER_CHAIN
            role = f"r{self._department(chain)}-"
            yield policy_pb2.ImportedBinding(subject=subject, role=STAFF if self.is_staff(user) else f"{role}0")
            for rank in range(1, 5):
                doc = (4 * user + rank) % (self.folders * PER_FOLDER)
                yield policy_pb2.ImportedBinding(subject=subject, role=f"{role}{rank}", resource=f"doc/{doc}")
            yield policy_pb2.ImportedBinding(subject=subject, role=READER, resource=f"folder/{user % self.folders}")
            for rank in range(6, 9):
                yield policy_pb2.ImportedBinding(subject=subject, role=f"{role}{rank}", resource=f"folder/{(user + rank) % self.folders}")
            project = f"project/{self._project(chain)}"
            if user % PER_USER:
                yield policy_pb2.ImportedBinding(subject=subject, role=f"{role}9", resource=project)
            else:
                turn = user // PER_USER % PER_USER
                yield policy_pb2.ImportedBinding(subject_group=f"g{chain}-{turn % DEEP}", role=f"{role}{turn}", resource=project)


def _user(number: int) -> rbac_pb2.Subject:
    return rbac_pb2.Subject(type=rbac_pb2.SUBJECT_TYPE_USER, id=user_id(number))


def _parts(members: Iterator[T]) -> Iterator[list[T]]:
    while part := list(islice(members, PER_CHUNK)):
        yield part
