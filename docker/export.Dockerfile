# Exports checkpoints, and trains upsamplers; no GPU is needed. Build it from the root of the repository:
#
#     docker build -f docker/export.Dockerfile -t lssgen-export .
#     docker run --rm -e HF_TOKEN -v "$PWD/data:/data" lssgen-export export --model sd3 --resolutions 512,1024 --precision fp16
#
# TORCH_INDEX_URL names an index with torch for the CPU (pytorch.org says which); without it pip takes the build with
# CUDA, and the image is five times as large. EXTRAS=export,tensorrt-rtx also builds engines ahead of time.
FROM python:3.11-slim-bookworm

ARG TORCH_INDEX_URL=""
ARG EXTRAS="export"

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1

# torch by itself, before what changes more often.
WORKDIR /src
COPY constraints.txt ./
RUN grep '^torch==' constraints.txt > torch.txt \
    && python -m pip install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} -r torch.txt

COPY pyproject.toml README.md LICENSE ./
COPY lssgen lssgen
RUN python -m pip install -c constraints.txt ".[${EXTRAS}]" \
    && useradd --uid 1000 --create-home painter \
    && install -d -o painter -g painter /data

# Bundles, converted checkpoints and the hub's cache: all in one volume. HOME and USER serve
# those who run it with --user, for whom there is no account.
USER 1000
ENV HOME=/data \
    USER=painter \
    LSSGEN_HOME=/data/lssgen \
    HF_HOME=/data/huggingface
WORKDIR /data
VOLUME /data

ENTRYPOINT ["lssgen"]
CMD ["--help"]
