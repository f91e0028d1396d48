# Paints, and builds engines where the GPU is; no torch, no weights. Build it from the root of the repository:
#
#     docker build -f docker/production.Dockerfile -t lssgen .
#     docker run --rm --gpus all -v "$PWD/data:/data" lssgen build /data/bundles/sd3 --engine tensorrt
#     docker run --gpus all -v "$PWD/data:/data" -p 8000:8000 --entrypoint python lssgen \
#         /app/serve.py /data/bundles/sd3 --engine tensorrt --host 0.0.0.0
#
# EXTRA is tensorrt, tensorrt-rtx, onnxruntime-gpu or onnxruntime (for the CPU). The driver comes from the host, by
# NVIDIA's container toolkit; everything else of CUDA comes with the packages. Those of tensorrt fetch their libraries
# from NVIDIA's own index, which the build must reach, or a mirror of it that PIP_EXTRA_INDEX_URL names.
FROM python:3.11-slim-bookworm

ARG EXTRA="tensorrt"
ARG PIP_EXTRA_INDEX_URL=""

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1

WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY lssgen lssgen
RUN python -m pip install -c constraints.txt ".[${EXTRA}]" \
    && useradd --uid 1000 --create-home painter \
    && install -d -o painter -g painter /data
COPY examples/serve.py /app/serve.py

# Engines and what TensorRT measured stay in the volume, so that the next container finds them. HOME and USER serve
# those who run it with --user, for whom there is no account.
USER 1000
ENV HOME=/data \
    USER=painter \
    LSSGEN_HOME=/data/lssgen \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /data
VOLUME /data
EXPOSE 8000

ENTRYPOINT ["lssgen"]
CMD ["--help"]
