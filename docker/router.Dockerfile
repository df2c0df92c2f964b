# The router, and the client's commands for tests and for operators. It holds no model library: about 250 MB.
#   docker build --file docker/router.Dockerfile --tag pagewire-router:0.1.0 .
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

FROM ${PYTHON_IMAGE} AS build
WORKDIR /source
# Dependencies change less often than the code, so they have their own layer.
COPY pyproject.toml constraints.txt ./
COPY docker/requirements.py docker/
RUN python -m venv /opt/pagewire \
    && python docker/requirements.py router jwt > requirements.txt \
    && /opt/pagewire/bin/pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt
COPY README.md LICENSE ./
COPY client client
COPY common common
COPY router router
COPY shard/pagewire_shard/__init__.py shard/pagewire_shard/
COPY kernels/pagewire_kernels/__init__.py kernels/pagewire_kernels/
RUN /opt/pagewire/bin/pip install --no-cache-dir --no-deps --constraint constraints.txt . \
    && /opt/pagewire/bin/python -c "import importlib.util as u; assert u.find_spec('torch') is None" \
    && /opt/pagewire/bin/pagewire-router --help > /dev/null

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/pagewire /opt/pagewire
ENV PATH=/opt/pagewire/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# An unprivileged user, given by number, so that Kubernetes can see that it is not root.
USER 65532:65532
WORKDIR /tmp
EXPOSE 50051 8000 9400 50059
ENTRYPOINT ["pagewire-router"]
CMD ["--help"]
