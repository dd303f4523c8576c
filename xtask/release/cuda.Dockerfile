# The CUDA image, without a toolkit: of CUDA it has the compiler of kernels (NVRTC) and its headers, from NVIDIA's PyPI
# packages; the driver comes from the host (`docker run --gpus all`). Build it as cpu.Dockerfile, from the archive with CUDA.
FROM python:3.12-slim-bookworm AS cuda
RUN pip download --no-deps --only-binary=:all: -d /wheels \
      nvidia-cuda-nvrtc-cu12==12.9.* nvidia-cuda-runtime-cu12==12.9.* nvidia-cuda-nvcc-cu12==12.9.* nvidia-cuda-cccl-cu12==12.9.* \
 && for wheel in /wheels/*.whl; do python -m zipfile -e "$wheel" /all; done \
 && mkdir -p /cuda/include /cuda/lib64 \
 && cp -r /all/nvidia/cuda_runtime/include/. /all/nvidia/cuda_nvcc/include/. /all/nvidia/cuda_cccl/include/. /cuda/include/ \
 && cp /all/nvidia/cuda_nvrtc/lib/libnvrtc.so.12 /all/nvidia/cuda_nvrtc/lib/libnvrtc-builtins.so.12.9 /cuda/lib64/

# Charts for vLLM start `vllm serve`. Distroless has no shell to make a link with.
FROM busybox:1.37 AS names
RUN mkdir /names && ln -s qwen-burn /names/vllm

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=cuda /cuda /usr/local/cuda
COPY --chmod=0755 bin/qwen-burn /usr/bin/qwen-burn
COPY --from=names /names/ /usr/bin/
COPY share/qwen-burn /usr/share/qwen-burn
ENV CUDA_PATH=/usr/local/cuda \
    LD_LIBRARY_PATH=/usr/local/cuda/lib64 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    HF_HOME=/home/nonroot/.cache/huggingface
VOLUME /home/nonroot/.cache
EXPOSE 8000
ENTRYPOINT ["/usr/bin/qwen-burn"]
CMD ["serve", "--host", "0.0.0.0"]
