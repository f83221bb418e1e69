"""The edge: Envoy's configuration, the generated descriptor set and the small service that answers for the whole."""

import services as services  # decides how gRPC serves connections, which must be before anything loads grpc
