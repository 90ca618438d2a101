# docker build -t onnxprune .                       ONNX Runtime for CPUs
# docker build -t onnxprune:gpu --build-arg RUNTIME=gpu --build-arg BASE=nvidia/cuda:12.9.1-cudnn-runtime-ubuntu24.04 .
# docker run --rm -v "$PWD:/work" onnxprune prune model.onnx -o small.onnx --target macs=50%
ARG BASE=ubuntu:24.04
FROM ${BASE}
ARG RUNTIME=cpu
ARG EXTRAS=clean,data,text,plot,quantize
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN python3 -m venv /opt/onnxprune \
    && /opt/onnxprune/bin/pip install --no-cache-dir "/src[${RUNTIME},${EXTRAS}]" \
    && rm -rf /src
ENV PATH=/opt/onnxprune/bin:$PATH
RUN useradd --create-home user
USER user
WORKDIR /work
ENTRYPOINT ["onnxprune"]
CMD ["--help"]
