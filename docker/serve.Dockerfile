# Serves bundles by HTTP; no torch, no weights. Build it from the root of the repository:
#
#     docker build -f docker/serve.Dockerfile -t lssgen-serve .
#     docker run --gpus all -v "$PWD/data:/data" -p 8000:8000 lssgen-serve serve /data/bundles/sd3 --engine tensorrt --sizes 1024 --host 0.0.0.0 --api-keys /data/keys.txt
#
# EXTRAS is serve and one of tensorrt, tensorrt-rtx, onnxruntime-gpu and onnxruntime (for the CPU); otel brings traces,
# lora what merging LoRAs needs where no TensorRT brings it.
# The driver comes from the host, by NVIDIA's container toolkit; everything else of CUDA comes with the packages. Those
# of tensorrt fetch their libraries from NVIDIA's own index, which the build must reach, or a mirror of it that
# PIP_EXTRA_INDEX_URL names.
FROM python:3.11-slim-bookworm

ARG EXTRAS="serve,tensorrt"
ARG PIP_EXTRA_INDEX_URL=""

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1

WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY lssgen lssgen
RUN python -m pip install -c constraints.txt ".[${EXTRAS}]" \
    && useradd --uid 1000 --create-home painter \
    && install -d -o painter -g painter /data

# Jobs, engines and what TensorRT measured stay in the volume, so that the next container goes on with them. HOME and
# USER serve those who run it with --user, for whom there is no account.
USER 1000
ENV HOME=/data \
    USER=painter \
    LSSGEN_HOME=/data/lssgen \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /data
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health/live', timeout=4)"]

ENTRYPOINT ["lssgen"]
CMD ["serve", "--help"]
