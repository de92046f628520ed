# docker build -f docker/cuda.Dockerfile -t fewpairs:cuda .
# docker run --rm --gpus all -v "$PWD/data:/work/data" fewpairs:cuda dvc repro
# PyPI's torch brings its own CUDA libraries; the host needs the driver and the NVIDIA container toolkit.
FROM python:3.11-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 DVC_NO_ANALYTICS=1 \
    VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH

RUN useradd --create-home --uid 1000 user && install -d -o user /work /opt/venv
USER 1000
WORKDIR /work
COPY --chown=user . .

# There is no git in the image: DVC is told so.
RUN python -m venv /opt/venv \
    && pip install -e '.[gpu,default]' \
    && printf '[core]\n    no_scm = true\n' > .dvc/config.local

CMD ["pipeline", "doctor"]
