# Everything of this repository in one image, for a CPU. docs/install.md says how it is used.
FROM python:3.11-slim

# OpenMP of the numeric wheels, which slim images lack
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/ctmasknet
COPY requirements.txt requirements-detectron2.txt ./
# An index of torch's wheels without CUDA makes the image a fraction of the size
ARG TORCH_INDEX=""
RUN if [ -n "$TORCH_INDEX" ]; then \
        python -m pip install --no-cache-dir --index-url "$TORCH_INDEX" $(grep -E '^torch(vision)?==' requirements.txt); \
    fi
RUN python -m pip install --no-cache-dir -r requirements.txt \
    && python -m pip install --no-cache-dir --upgrade --no-deps --require-hashes --only-binary=:all: \
        --python-version 3.10 -r requirements-detectron2.txt \
        --target "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
COPY . .
RUN python -m pip install --no-cache-dir --no-deps --no-build-isolation -e .

# Any user may run it: what libraries cache goes where all can write
ENV HOME=/tmp
WORKDIR /data
ENTRYPOINT ["ctmasknet"]
CMD ["--help"]
