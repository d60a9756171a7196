# The image: one binary on a runtime that has a C library, CA certificates and no shell. It runs as
# an ordinary user, writes nothing, and needs only its configuration, mounted at
# /etc/tidegate/tidegate.toml.
#
#   docker build -t tidegate .        (or: buildah build --layers -t tidegate .)

# rust-version in Cargo.toml says how old the compiler may be. Builder and runtime must be of one
# Debian release: the binary wants a C library at least as new as the one it was linked against.
ARG BUILDER=rust:1.95-slim-bookworm
ARG RUNTIME=gcr.io/distroless/cc-debian12:nonroot

FROM ${BUILDER} AS build
WORKDIR /build

# Cargo.toml keeps line tables for profiles of local builds. They are most of the binary, so the
# image goes without; function names stay, and a backtrace or a profile can still be read.
ENV CARGO_PROFILE_RELEASE_DEBUG=0

# The dependencies, in a layer that is rebuilt only when a manifest changes. Empty files stand in
# for the crate, and its benches, whose files cargo would miss, are left out. The crate's artefacts
# are removed again because cargo compares times: the real sources are older than what was built
# from the empty files, and would be taken for unchanged.
COPY Cargo.toml Cargo.lock ./
RUN sed -i '/^\[\[bench\]\]/,/^$/d' Cargo.toml \
    && mkdir src \
    && touch src/lib.rs \
    && echo 'fn main() {}' > src/main.rs \
    && cargo build --release --locked \
    && cargo clean --release --locked --package tidegate \
    && rm -r src

# The crate. .dockerignore says what this brings in.
COPY . .
RUN cargo build --release --locked

FROM ${RUNTIME}

ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="tidegate" \
      org.opencontainers.image.description="A reverse proxy that splits traffic between two versions of a service, measures both, and promotes or rolls back by itself." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

COPY LICENSE /usr/share/doc/tidegate/LICENSE
COPY --from=build /build/target/release/tidegate /usr/local/bin/tidegate

# As numbers, because Kubernetes cannot tell from a name that it is not root.
USER 65532:65532

# 8080 is for requests, 9090 for the admin API and /metrics. Neither needs a privilege.
EXPOSE 8080 9090

# SIGTERM is what starts the drain. The process is the container's first, without a shell between,
# so the signal reaches it.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/tidegate"]
CMD ["run", "--config", "/etc/tidegate/tidegate.toml"]
