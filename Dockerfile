# One image, three commands: `gateway`, `agent-api`, `registry`; and the rest of the command line for operators.

ARG PYTHON_IMAGE=python:3.12-slim

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/build && python -m venv --without-pip /opt/agentbridge
ENV PATH=/opt/build/bin:$PATH
# Nothing is built here but by what build.txt names; nkeys has no wheel.
COPY requirements/build.txt requirements/runtime.txt /src/requirements/
RUN pip install --require-hashes --only-binary :all: -r /src/requirements/build.txt \
 && pip wheel --require-hashes --only-binary :all: --no-binary nkeys --no-build-isolation --wheel-dir /wheels \
    -r /src/requirements/runtime.txt \
 && pip --python /opt/agentbridge/bin/python install --no-deps --no-index /wheels/*.whl
COPY . /src
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /own /src \
 && pip --python /opt/agentbridge/bin/python install --no-deps --no-index /own/*.whl

FROM ${PYTHON_IMAGE}
ENV PATH=/opt/agentbridge/bin:$PATH \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    AGENTBRIDGE_GATEWAY_HOST=0.0.0.0 AGENTBRIDGE_API_HOST=0.0.0.0 \
    AGENTBRIDGE_REGISTRY_HOST=0.0.0.0 AGENTBRIDGE_REGISTRY_PORT=8002 \
    AGENTBRIDGE_LOG_FORMAT=json
COPY --from=build /opt/agentbridge /opt/agentbridge
# A number, so that an orchestrator can see that it is not root.
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000 8001 8002
ENTRYPOINT ["agentbridge"]
CMD ["--help"]
