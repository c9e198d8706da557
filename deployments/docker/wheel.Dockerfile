# An image from the wheels alone, without the repository's code:
#   make wheels
#   docker build -f deployments/docker/wheel.Dockerfile -t zk0 dist
ARG PYTHON_IMAGE=python:3.12.14-slim-bookworm@sha256:782412e85d0f0984994c290652577d4018aff08145c85b262bb63dc0c7522254
FROM $PYTHON_IMAGE

# EGL and OpenGL render the simulator; without a GPU, in software
RUN apt-get update \
    && apt-get install -y --no-install-recommends libegl1 libgl1 libgles2 libglib2.0-0 libosmesa6 \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 zk0 && mkdir -p /zk0 /var/lib/zk0 && chown zk0:zk0 /zk0 /var/lib/zk0
USER zk0
WORKDIR /zk0
ENV PATH=/home/zk0/.local/bin:$PATH \
    ZK0_HOME=/var/lib/zk0 \
    MUJOCO_GL=egl \
    FLWR_TELEMETRY_ENABLED=0 \
    FLWR_DISABLE_UPDATE_CHECK=1 \
    PREFECT_SERVER_ANALYTICS_ENABLED=false

COPY --chown=zk0:zk0 *.whl /tmp/wheels/
RUN pip install --no-cache-dir --user /tmp/wheels/*.whl && zk0 init /zk0

CMD ["zk0", "--help"]
