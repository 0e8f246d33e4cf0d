# vsockproxy as a container: docs/containers.md says how to run it.
#
# Two stages.  The first has a compiler and makes the wheel with the native pump; the second
# gets the finished virtual environment and runs nothing while it is built, so its base needs
# no shell and no package manager.  Both bases need the same Python at the same path.
ARG BUILD_IMAGE=docker.io/library/python:3.13-bookworm
ARG FINAL_IMAGE=docker.io/library/python:3.13-slim-bookworm

FROM ${BUILD_IMAGE} AS build
WORKDIR /build
COPY pyproject.toml setup.py README.md LICENSE ./source/
COPY vsockproxy ./source/vsockproxy
COPY man ./source/man
# pip stays in the build's environment; the one that is copied has no installer in it.
# The last line fails the build where the pump was not compiled.
RUN python3 -m venv tools \
    && tools/bin/pip wheel --no-cache-dir --wheel-dir wheels ./source \
    && python3 -m venv --without-pip /opt/vsockproxy \
    && tools/bin/pip --python /opt/vsockproxy/bin/python install --no-cache-dir \
        --no-index --find-links wheels vsockproxy \
    && /opt/vsockproxy/bin/python -c "import vsockproxy.pump._native._pump"

FROM ${FINAL_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="vsockproxy" \
      org.opencontainers.image.description="Carries byte streams between TCP and vsock: a guest's services on host ports" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/vsockproxy /opt/vsockproxy
# A number, because runAsNonRoot looks at no /etc/passwd; nothing here is writable for it.
USER 65532:65532
ENV PATH=/opt/vsockproxy/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s --retries=3 CMD ["vsockproxy", "health"]
ENTRYPOINT ["vsockproxy"]
CMD ["run"]
