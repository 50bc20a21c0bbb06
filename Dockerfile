# tithe in a container, for the CPU: docker build -t tithe .
# For an NVIDIA GPU:                  docker build -t tithe:cuda --build-arg DEVICE=cu130 .
# docs/install.md says how to run it.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS build
# The folder of torch's own index that torch comes from: `cpu`, or a CUDA version that the driver knows, such as `cu130`.
ARG DEVICE=cpu
# Extras between commas; `hub` reads data sets from the hub.
ARG EXTRAS=hub
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python -m venv /opt/tithe
ENV PATH=/opt/tithe/bin:$PATH
COPY constraints.txt ./
# torch first and alone, and before the sources, so that a change of these does not load it again.
RUN pip install --index-url https://download.pytorch.org/whl/${DEVICE} --extra-index-url https://pypi.org/simple \
    "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml README.md CHANGELOG.md LICENSE SKILL.md ./
COPY src ./src
# The constraints hold for hatchling too, which pip installs apart to build with.
RUN PIP_CONSTRAINT=constraints.txt pip install ".[${EXTRAS}]"

FROM python:${PYTHON}-slim-bookworm
ARG DEVICE=cpu
# torch.compile makes its GPU kernels with a C compiler.
RUN if [ "$DEVICE" != cpu ]; then \
        apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; \
    fi
COPY --from=build /opt/tithe /opt/tithe
# Anybody may write to the home folder, so that `--user` can name whoever owns the mounted folder.
RUN useradd --create-home --home-dir /var/lib/tithe --uid 1000 tithe && mkdir /data /models && \
    chmod 1777 /var/lib/tithe /data /models
# Models from the hub go to /models. USER is for libraries that look up the name of a user who has none.
ENV PATH=/opt/tithe/bin:$PATH HOME=/var/lib/tithe USER=tithe HF_HOME=/models PYTHONUNBUFFERED=1
USER tithe
WORKDIR /data
ENTRYPOINT ["tithe"]
CMD ["--help"]
