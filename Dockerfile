# One image for every process of the suite: `docker run IMAGE services.token`, services.rbac, services.identity, gateway,
# services.chassis.migrate, services.identity.bootstrap or gateway.render. It holds no secret and no default for one.
ARG PYTHON=3.12-slim-bookworm

FROM python:${PYTHON} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/watchword
COPY requirements/run.txt /tmp/run.txt
# Wheels only, each checked against its hash: nothing is compiled here and nothing unknown gets in.
RUN /opt/watchword/bin/pip install --require-hashes --only-binary=:all: --requirement /tmp/run.txt
COPY scripts/_signing_library /tmp/
# What stays is the one library that is used, of the 46 MB of its wheel.
RUN sh /tmp/_signing_library /opt/watchword && rm -f /opt/watchword/lib/libippcp.so* /opt/watchword/lib/libcrypto_mb.so* /opt/watchword/bin/patchelf
WORKDIR /app
COPY watchword/ watchword/
COPY services/ services/
COPY gateway/ gateway/
COPY envoy.yaml ./
# Bytecode is made now, because the root file system is read-only later. An empty /config gives the volume its owner: Envoy.
RUN python -m compileall -q watchword services gateway && mkdir /config

FROM python:${PYTHON}
ARG VERSION=1.0.0
LABEL org.opencontainers.image.title="watchword" \
      org.opencontainers.image.description="Identity, token and rbac services, their edge service and their tools" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/watchword /opt/watchword
COPY --from=build /app /app
COPY --from=build --chown=101:101 /config /config
# GRPC_ADDRESS listens for the other containers; with APP_ENV=production that wants TLS or an explicit ALLOW_PLAINTEXT.
ENV PATH=/opt/watchword/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    GRPC_ADDRESS=0.0.0.0:50051
WORKDIR /app
# A number, so that Kubernetes can see that it is not root.
USER 10001:10001
EXPOSE 50051
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-m", "services.chassis.probe", "-addr=127.0.0.1:50051"]
# SIGTERM reaches Python itself, which drains for up to DRAIN_TIMEOUT (20 s): give it 30 s before a kill.
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m"]
CMD ["services.identity"]
