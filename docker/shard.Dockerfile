# A shard, for CPUs and NVIDIA GPUs: the wheel of torch brings CUDA's libraries, the node its driver.
#   docker build --file docker/shard.Dockerfile --tag pagewire-shard:0.1.0 .
# For CPUs alone, a quarter of the size: --build-arg TORCH_INDEX=URL, with PyTorch's index of CPU wheels.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

FROM ${PYTHON_IMAGE} AS build
WORKDIR /source
COPY pyproject.toml constraints.txt ./
COPY docker/requirements.py docker/
# Package index for torch alone; empty: the same as for all other packages.
ARG TORCH_INDEX=
RUN python -m venv /opt/pagewire \
    && python docker/requirements.py shard > requirements.txt \
    && grep '^torch' requirements.txt > torch.txt \
    && /opt/pagewire/bin/pip install --no-cache-dir --constraint constraints.txt \
        ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} --requirement torch.txt \
    && /opt/pagewire/bin/pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt
COPY README.md LICENSE ./
COPY client client
COPY common common
COPY router/pagewire_router/__init__.py router/pagewire_router/
COPY shard shard
COPY kernels kernels
RUN /opt/pagewire/bin/pip install --no-cache-dir --no-deps --constraint constraints.txt . \
    && /opt/pagewire/bin/pagewire-shard --help > /dev/null

FROM ${PYTHON_IMAGE}
# Triton compiles a launcher in C for each kernel when it is first used.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/pagewire /opt/pagewire
ENV PATH=/opt/pagewire/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    HOME=/tmp \
    NUMBA_CACHE_DIR=/tmp/numba \
    TRITON_CACHE_DIR=/tmp/triton
USER 65532:65532
WORKDIR /tmp
EXPOSE 50052 9400 50059
ENTRYPOINT ["pagewire-shard"]
CMD ["--help"]
