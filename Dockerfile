# The image of vsockproxy: docs/containers.md explains how to run it.
#
# The first stage has a compiler and builds the wheel with the native pump.  The second stage gets
# the finished virtual environment and runs no command, so its base needs no shell and no package
# manager.  Both bases need the same Python at the same path.
ARG BUILD_IMAGE=docker.io/library/python:3.13-bookworm
ARG FINAL_IMAGE=docker.io/library/python:3.13-slim-bookworm

FROM ${BUILD_IMAGE} AS build
WORKDIR /build
COPY release/requirements.txt ./
COPY pyproject.toml setup.py README.md LICENSE ./source/
COPY vsockproxy ./source/vsockproxy
COPY man ./source/man
# The commit, for vsockproxy version: the build has no .git.
ARG REVISION=
# The environment that is copied has no installer: pip stays in the build's environment.  Byte code
# is by content, for the image must not depend on the time of the build.
# The last line fails the build if the pump was not compiled.
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0
RUN python3 -m venv tools \
    && VSOCKPROXY_REVISION="${REVISION}" tools/bin/pip wheel --no-cache-dir --no-deps --wheel-dir wheels ./source \
    && python3 -m venv --without-pip /opt/vsockproxy \
    && tools/bin/pip --python /opt/vsockproxy/bin/python install --no-cache-dir --no-compile \
        --require-hashes --requirement requirements.txt \
    && tools/bin/pip --python /opt/vsockproxy/bin/python install --no-cache-dir --no-compile \
        --no-index --no-deps wheels/*.whl \
    && /opt/vsockproxy/bin/python -m compileall -qf --invalidation-mode unchecked-hash \
        /opt/vsockproxy/lib \
    && /opt/vsockproxy/bin/python -c "import vsockproxy.pump._native._pump"

FROM ${FINAL_IMAGE}
ARG VERSION=0.2.0
ARG REVISION=
LABEL org.opencontainers.image.title="vsockproxy" \
      org.opencontainers.image.description="Carries byte streams between TCP and vsock: a guest's services on host ports" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/vsockproxy /opt/vsockproxy
# A number, because runAsNonRoot does not read /etc/passwd.  The user can write to no file.
USER 65532:65532
ENV PATH=/opt/vsockproxy/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=5s --retries=3 CMD ["vsockproxy", "health"]
ENTRYPOINT ["vsockproxy"]
CMD ["run"]
