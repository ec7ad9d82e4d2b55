# Signalbox's image: one static binary, on nothing.
#
#   docker build -t docker.io/signalbox/signalbox:dev .
#
# The toolchain is pinned here and in go.mod, every module in go.sum; there is no base
# image whose contents could change.
FROM --platform=$BUILDPLATFORM golang:1.27.2-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG TARGETOS TARGETARCH VERSION=""
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -ldflags "-s -w -X main.version=$VERSION" -o /out/signalbox ./cmd/signalbox

FROM scratch
# For pickers that a BackendTLSPolicy verifies by wellKnownCACertificates: System.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/signalbox /usr/local/bin/signalbox
# Nothing is written: the root file system may be read-only.
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/signalbox"]
