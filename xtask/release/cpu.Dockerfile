# The CPU image, from an archive that `cargo xtask archive` has made, unpacked:
#   mkdir image && tar -xzf qwen-burn-VERSION-TARGET.tar.gz --strip-components 1 -C image
#   docker build -t qwen-burn -f xtask/release/cpu.Dockerfile image
# `cargo xtask image` makes an image of the same content without a daemon.
# Charts for vLLM start `vllm serve`. Distroless has no shell to make a link with.
FROM busybox:1.37 AS names
RUN mkdir /names && ln -s qwen-burn /names/vllm

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --chmod=0755 bin/qwen-burn /usr/bin/qwen-burn
COPY --from=names /names/ /usr/bin/
COPY share/qwen-burn /usr/share/qwen-burn
ENV HF_HOME=/home/nonroot/.cache/huggingface
VOLUME /home/nonroot/.cache
EXPOSE 8000
ENTRYPOINT ["/usr/bin/qwen-burn"]
CMD ["serve", "--host", "0.0.0.0"]
