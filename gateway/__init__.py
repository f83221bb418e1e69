"""The edge: Envoy's configuration, the generated descriptor set and the small service that answers for the whole."""
