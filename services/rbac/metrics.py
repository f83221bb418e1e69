"""What only rbac can tell Prometheus: what answers came of, and what is remembered."""

from collections.abc import Callable, Iterator

from services.chassis.metrics import Family, Sample, Source, gauge
from services.rbac.checker import Checker
from services.rbac.memory import Memory


def told(checker: Checker, memory: Memory, watchers: Callable[[], int]) -> Source:
    """Read what the checker counted, and memory."""

    def source() -> Iterator[Family]:
        views = [Sample(checker.warm, {"source": "memory"}), Sample(checker.cold, {"source": "postgres"})]
        yield Family("watchword_rbac_views_total", "counter", "Questions, or batches of them, by what they were answered from.", views)
        yield gauge("watchword_rbac_remembered", "Subjects and resources whose policy is remembered.", len(memory))
        yield gauge("watchword_rbac_remembered_parts", "Parts of policies that are remembered: POLICY_MEMORY bounds them.", memory.weight)
        yield gauge("watchword_rbac_watchers", "Clients elsewhere that follow changes of policies.", watchers())

    return source
