"""The RPCs of the edge."""

from gateway.health import WholeHealth
from services.chassis.call import Call
from services.chassis.clock import Clock
from services.chassis.settings import ChassisSettings
from watchword.gateway.v1 import health_pb2

UNAVAILABLE = ("x-http-status", "503")
WORDS = {True: "healthy", False: "unhealthy"}


class HealthServicer:
    """watchword.gateway.v1.HealthService."""

    def __init__(self, health: WholeHealth, settings: ChassisSettings, clock: Clock) -> None:
        self._health = health
        self._clock = clock
        self._facts = {"service": settings.APP_NAME, "version": settings.APP_VERSION, "environment": settings.APP_ENV}

    async def GetHealth(self, _request: health_pb2.GetHealthRequest, _call: Call) -> health_pb2.GetHealthResponse:
        return health_pb2.GetHealthResponse(status="healthy", timestamp=self._now(), **self._facts)

    async def GetDetailedHealth(self, _request: health_pb2.GetDetailedHealthRequest, call: Call) -> health_pb2.GetDetailedHealthResponse:
        report = await self._health.dependencies()
        if not report.is_good:
            call.response_headers.append(UNAVAILABLE)
        checks = health_pb2.DependencyChecks(**{name: WORDS[good] for name, good in report.checks.items()})
        return health_pb2.GetDetailedHealthResponse(status=WORDS[report.is_good], timestamp=self._now(), checks=checks, **self._facts)

    async def GetReadiness(self, _request: health_pb2.GetReadinessRequest, call: Call) -> health_pb2.GetReadinessResponse:
        report = await self._health.contexts()
        if not report.is_good:
            call.response_headers.append(UNAVAILABLE)
        return health_pb2.GetReadinessResponse(status="ready" if report.is_good else "not_ready", timestamp=self._now(), **self._facts)

    async def GetLiveness(self, _request: health_pb2.GetLivenessRequest, _call: Call) -> health_pb2.GetLivenessResponse:
        return health_pb2.GetLivenessResponse(status="alive", timestamp=self._now(), **self._facts)

    def _now(self) -> float:
        return round(self._clock.now().timestamp(), 3)
