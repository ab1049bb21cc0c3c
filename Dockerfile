# winnowd as an image: the program, the C library that it is linked to, TLS roots, and nothing else. No shell, no package manager.
#
#   docker build --tag winnowd .
#   docker run --rm winnowd demo
#
# One base, which only builds. It is named by version: append the digest that your registry shows for it
# (`--build-arg RUST=rust:1.95.0-bookworm@sha256:…`) where a build must be the same for ever. It brings all compilers that the
# bundled C libraries need, so that no step installs a package whose version would be another next month.
ARG RUST=rust:1.95.0-bookworm

FROM ${RUST} AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /build
# Paths and times of a machine must not differ between two builds of the same sources.
ENV CARGO_INCREMENTAL=0 RUSTFLAGS="--remap-path-prefix=/build=. --remap-path-prefix=/usr/local/cargo=cargo" SOURCE_DATE_EPOCH=0

# Dependencies first, in a layer that changes with Cargo.toml and Cargo.lock alone. The sources are stood in for by empty ones:
# cargo insists on a file for each target that the manifest names. A tool such as cargo-chef would do the same, and would have to be
# compiled or trusted itself; a cache mount would be faster at one machine and empty on every other, a layer is shared by all.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src tests benches \
    && touch src/lib.rs \
    && echo 'fn main() {}' > src/main.rs \
    && awk -F '"' '/^\[\[/ { kind = $0 } /^name = / && kind == "[[test]]" { print "tests/" $2 ".rs" } \
                   /^name = / && kind == "[[bench]]" { print "benches/" $2 ".rs" }' Cargo.toml | xargs touch \
    && cargo build --locked --release --bin winnowd

COPY config config
COPY migrations migrations
COPY src src
# cargo goes by time stamps: sources that are older than the layer above would count as built.
RUN find src config migrations -exec touch {} + \
    && cargo build --locked --release --bin winnowd \
    && strip --strip-debug --remove-section=.comment target/release/winnowd \
    && ./target/release/winnowd check --defaults | cmp - config/default.toml

# The root of the final image: what the program is linked to (ldd names it, for any processor), certificates, a user and places
# to write to for those who mount none.
RUN install -D target/release/winnowd /image/usr/local/bin/winnowd \
    && ldd target/release/winnowd | grep -o '/[^ ]*' | xargs -I {} cp -L --parents {} /image \
    && install -D -m 644 /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt \
    && echo 'winnowd:x:65532:65532::/var/lib/winnowd:/sbin/nologin' > /image/etc/passwd \
    && echo 'winnowd:x:65532:' > /image/etc/group \
    && echo 'hosts: files dns' > /image/etc/nsswitch.conf \
    && install -d -m 1777 /image/tmp \
    && install -d -o 65532 -g 65532 /image/var/lib/winnowd \
    && find /image -exec touch -hd @0 {} +

FROM scratch
LABEL org.opencontainers.image.title="winnowd" \
      org.opencontainers.image.description="Selects pretraining data from Kafka, exactly once" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /image/ /
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
USER 65532:65532
WORKDIR /var/lib/winnowd
EXPOSE 9464
# No HEALTHCHECK: whoever runs it asks /healthz and /readyz, and Kubernetes ignores it.
ENTRYPOINT ["/usr/local/bin/winnowd"]
CMD ["--help"]
