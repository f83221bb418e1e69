"""What only identity can tell Prometheus: logins, by what became of them, and how busy the hash pool is."""

from collections.abc import Iterator, Mapping

from services.chassis.metrics import Family, Meter, Sample, Source, counter, gauge
from services.identity.hashing import HashPool

LOGIN = "/watchword.identity.v1.AuthenticationService/Login"
SUCCEEDED = "SUCCEEDED"
WRONG = "INVALID_CREDENTIALS"


def told(meters: Mapping[str, Meter], pool: HashPool) -> Source:
    """Read the calls of Login, and the hash pool."""

    def source() -> Iterator[Family]:
        login = meters[LOGIN]
        outcomes = {SUCCEEDED: login.answered, WRONG: 0, **login.reasons}
        logins = [Sample(count, {"outcome": outcome}) for outcome, count in outcomes.items()]
        yield Family("watchword_identity_logins_total", "counter", "Logins, by what became of them; INVALID_CREDENTIALS is a wrong password.", logins)
        yield counter("watchword_identity_hashes_total", "Password hashes computed.", pool.finished)
        refused = "Password hashes refused because they would have ended after their callers' deadlines."
        yield counter("watchword_identity_hashes_refused_total", refused, pool.refused)
        yield gauge("watchword_identity_hash_queue", "Passwords that wait for a hash process or are being hashed.", pool.present)
        yield gauge("watchword_identity_hash_workers", "Processes that hash passwords, at most.", pool.workers)
        given_up = "Hash processes that died, could not be started, or got too little CPU for their hash."
        yield counter("watchword_identity_hash_processes_given_up_total", given_up, pool.given_up)
        yield gauge("watchword_identity_hash_memory_bytes", "Memory of the hash processes, shared pages counted each time.", pool.resident)
        yield counter("watchword_identity_hash_cpu_seconds_total", "CPU seconds that hashes took, in processes of their own.", pool.cpu)
        yield gauge("watchword_identity_hash_seconds", "Seconds that a password hash takes here, as a moving average.", pool.average)
        yield gauge("watchword_identity_hash_wait_seconds", "Seconds that a login would wait for its hash to begin.", pool.wait)

    return source
